"""The example of embedding lljax in other code: it runs, and what it prints is an improvement."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from problems import normal

import lljax

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "embed.py"

ROW = re.compile(r"^(.{24}) " + r"([\d.]+) -> ([\d.]+) +" * 3 + r"([\d.]+|nan)$", re.MULTILINE)


@pytest.fixture(scope="module")
def embed():
    spec = importlib.util.spec_from_file_location("embed", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_example_improves_every_kind_of_model(embed, capsys):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):  # as its reader runs it
        embed.main()
    printed = capsys.readouterr().out
    found = ROW.findall(printed)
    rows = {name.strip(): [float(number) for number in numbers] for name, *numbers in found}
    assert list(rows) == [
        "plain pytree",
        "Flax Linen",
        "Flax NNX",
        "8 seeds, median",
        "8 seeds, worst test AUC",
        "own function",
    ], printed
    for name, numbers in rows.items():
        desired, desired_after, test, test_after, wrong, wrong_after, acceleration = numbers
        assert desired_after < 0.75 * desired, name
        assert test_after < 0.75 * test, name
        assert wrong == 0.5, name
        assert wrong_after < 0.15, name
        assert acceleration > 3, name


def models_with_the_same_parameters(embed):
    plain = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), embed.init_plain(jax.random.key(0)))
    layers = {name: {"kernel": at["w"], "bias": at["b"]} for name, at in plain.items()}
    nnx_loss, nnx_params = embed.split_nnx(embed.NNXMLP(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(nnx_params, layers)
    return {
        "plain": (embed.plain_loss, plain),
        "linen": (embed.linen_loss, {"params": layers}),
        "nnx": (nnx_loss, nnx_params),
    }


@pytest.mark.slow
# The example's plain model adds its bias the way everybody writes it.
@jax.numpy_rank_promotion("allow")
def test_linen_nnx_and_plain_models_agree(embed):
    # A state with every kind of leaf, and a norm over the whole pytree, whatever its class.
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01, eps_root=1e-8))
    data = jax.jit(embed.make_data)(jax.random.key(1))
    policy = jax.nn.softmax(normal(2, (12, embed.NUM_EXAMPLES)))
    results = {}
    for kind, (loss_fn, params) in models_with_the_same_parameters(embed).items():
        loss_auc = lljax.build_loss_auc(loss_fn, optimizer)
        meta_gradient = jax.jit(jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True))
        (auc, info), grads = meta_gradient(policy, params, data["train"], data["desired"])
        assert auc.dtype == jnp.float64
        for tree in (info.params, grads[1]):
            assert jax.tree.structure(tree) == jax.tree.structure(params), kind
        results[kind] = auc, grads[0], sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads[1]))
    for kind in ("linen", "nnx"):
        for value, expected in zip(results[kind], results["plain"], strict=True):
            np.testing.assert_allclose(
                value, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max(), err_msg=kind
            )
