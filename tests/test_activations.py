"""What stands between the layers of the models: the functions, the defaults, the setting."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer
import pytest

from lljax.models.activations import ACTIVATIONS
from lljax.models.small import Small, build_init
from lljax.tasks.build import build_problem
from lljax.tasks.config_file import load_experiment


def by_hand(name, x):
    return np.tanh(x) if name == "tanh" else numpy_transformer.ACTIVATIONS[name](x)[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_hidden_layer_is_what_it_is_by_hand(name):
    model = Small("mlp", outputs=3, width=5, num_layers=2, activation=name)
    x = np.random.default_rng(0).normal(size=(4, 6))
    params = build_init(model, jnp.asarray(x[:1]))(jax.random.key(0))
    expected = x
    for layer in range(3):
        kernel, bias = (params[f"Dense_{layer}"][part] for part in ("kernel", "bias"))
        expected = expected @ np.asarray(kernel, float) + np.asarray(bias, float)
        expected = by_hand(name, expected) if layer < 2 else expected
    found = model.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_pictures_go_through_it_too():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6)), jnp.float32)
    found = {}
    for name in ACTIVATIONS:
        model = Small("cnn", outputs=2, width=3, num_layers=1, activation=name)
        params = build_init(model, x[:1])(jax.random.key(0))
        found[name] = np.asarray(model.apply({"params": params}, x))
    for name in ("gelu", "tanh"):
        assert (np.abs(found[name] - found["relu"]) > 1e-4).all()


def test_another_one_is_refused_by_name():
    model = Small("mlp", outputs=2, width=3, num_layers=1, activation="swish")
    with pytest.raises(ValueError, match="`activation` must be one of gelu, relu, tanh; got 'sw"):
        model.init(jax.random.key(0), jnp.ones((1, 4)))


@pytest.mark.parametrize(
    ("config", "default", "sizes"),
    [
        ("noisy_labels", "gelu", {"num_train": 64}),
        ("transformer_small", "relu", {"context": 8, "vocab_size": 64, "perturbations": 2}),
    ],
)
def test_the_setting_reaches_the_model(tmp_path, config, default, sizes):
    experiment = load_experiment(config)
    assert experiment.config.model.activation == default
    if config == "transformer_small":
        text = tmp_path / "text.txt"
        text.write_text("\n\n".join(f"{k} is one more than {k - 1}." for k in range(400)))
        few = dict.fromkeys(("num_train", "num_desired", "num_validation", "num_test"), 16)
        sizes = {**sizes, **few, "path": str(text), "cache_dir": str(tmp_path)}

    def losses(**chosen):
        changed = dataclasses.replace(
            experiment.config,
            model=dataclasses.replace(experiment.config.model, **chosen),
            data=dataclasses.replace(experiment.config.data, **sizes),
        )
        problem = build_problem(experiment._replace(config=changed))
        few = jax.tree.map(lambda leaf: leaf[:8], problem.train)
        return np.asarray(jax.jit(problem.loss_fn)(problem.params, few))

    assert (np.abs(losses() - losses(activation="tanh")) > 1e-5).all()
