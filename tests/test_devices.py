"""One meta-gradient over 1, 2, 4 and 8 devices: the same numbers, and what it costs to agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from many_devices import (
    ADAMW,
    SGD,
    assert_same,
    gradient_of,
    in_batches,
    logistic,
    place,
    transformer,
)

import lljax
from benchmarks.compiled import count_work
from benchmarks.devices import AXIS, make_mesh
from lljax.types import LossAucInfo

SLOW = pytest.mark.slow
FAST = [lljax.RecomputeStates(num_kept=4)]  # with idle places
OTHERS = [
    lljax.StoreStates(),
    lljax.RecomputeStates(),
    lljax.RecomputeStates(depth=2),
    lljax.KeepGradients(),
]
SPREAD = [lljax.SpreadStates(AXIS), lljax.SpreadStates(AXIS, on_host=True)]
STRATEGIES = FAST + [pytest.param(memory, marks=SLOW) for memory in OTHERS]


def over_devices(loss_fn, optimizer, problem, number, split=False, **options):
    """((AUC, info), gradients) on so many devices."""
    mesh = make_mesh(number)
    with jax.set_mesh(mesh):
        return gradient_of(loss_fn, optimizer, data_axis=AXIS, **options)(
            *place(problem, mesh, split)
        )


@pytest.mark.parametrize("number", [4, *(pytest.param(n, marks=SLOW) for n in (1, 2, 8))])
@pytest.mark.parametrize(
    "microbatch_size", [12, *(pytest.param(size, marks=SLOW) for size in (None, 8))]
)
@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("optimizer", [ADAMW, pytest.param(SGD, marks=SLOW)])
def test_any_number_of_devices_gives_the_same(number, microbatch_size, batches, optimizer):
    loss_fn, problem = logistic()
    problem = in_batches(problem) if batches else problem
    expected = gradient_of(loss_fn, optimizer, microbatch_size=microbatch_size)(*problem)
    options = {"microbatch_size": microbatch_size}
    assert_same(over_devices(loss_fn, optimizer, problem, number, **options), expected)


@pytest.mark.parametrize("memory", [*STRATEGIES, *SPREAD])
@pytest.mark.parametrize("split", [False, pytest.param(True, marks=SLOW)])
def test_every_memory_strategy_over_devices(memory, split):
    loss_fn, problem = transformer()
    expected = gradient_of(loss_fn, ADAMW)(*problem)
    options = {"microbatch_size": 8, "memory": memory}
    assert_same(over_devices(loss_fn, ADAMW, problem, 4, split, **options), expected)


@pytest.mark.parametrize("split", [False, True])
def test_minibatches_of_text_over_devices(split):
    loss_fn, problem = transformer()
    problem = in_batches(problem)
    expected = gradient_of(loss_fn, ADAMW)(*problem)
    assert_same(over_devices(loss_fn, ADAMW, problem, 4, split, microbatch_size=8), expected)


@pytest.mark.parametrize("number", [3, 8])
def test_examples_that_devices_do_not_divide(number):
    """They are filled up, and are not split beforehand."""
    loss_fn, problem = logistic()
    cut = jax.tree.map(lambda leaf: leaf[:29], problem.train)
    problem = problem._replace(policy=problem.policy[:, :29], train=cut)
    mesh = make_mesh(number)
    with jax.set_mesh(mesh):
        gradient = gradient_of(loss_fn, SGD, data_axis=AXIS, microbatch_size=9)
        found = gradient(*problem)
    assert_same(found, gradient_of(loss_fn, SGD)(*problem))


def sparse(problem):
    policy = jnp.where(problem.policy > jnp.median(problem.policy), problem.policy, 0)
    return problem._replace(policy=policy.at[2].set(0).at[2, :3].set(0.3))


@pytest.mark.parametrize("second_order", ["forward_over_reverse", "reverse_over_reverse"])
def test_examples_without_weight_over_devices(second_order):
    loss_fn, problem = logistic()
    problem = sparse(problem)
    (_, info), (slopes, of_params) = gradient_of(loss_fn, SGD)(*problem)
    options = {"microbatch_size": 8, "second_order": second_order}
    found = over_devices(loss_fn, SGD, problem, 4, zero_weight="slope_only", **options)
    assert_same(found[1], (slopes, of_params))
    (_, omitting), grads = over_devices(loss_fn, SGD, problem, 4, zero_weight="omit", **options)
    known = np.asarray(omitting.known_slopes)
    assert known[np.asarray(problem.policy) > 0].all()
    assert 0 < (~known).sum() < known.size
    assert_same((omitting.desired_losses, *grads), (info.desired_losses, slopes * known, of_params))


@pytest.mark.parametrize("memory", [*STRATEGIES, *SPREAD])
@pytest.mark.parametrize("options", [{}, {"microbatch_size": 8}])
def test_explicit_meshes(memory, options):
    """The types of the arrays say how they are split: no `data_axis` is needed."""
    loss_fn, problem = logistic()
    expected = gradient_of(loss_fn, ADAMW)(*problem)
    mesh = make_mesh(4, "Explicit")
    with jax.set_mesh(mesh):
        found = gradient_of(loss_fn, ADAMW, memory=memory, **options)(*place(problem, mesh))
    assert_same(found, expected)
    assert jax.typeof(found[1][0]).sharding.spec == jax.P(None, AXIS)


@pytest.mark.parametrize("memory", STRATEGIES)
@pytest.mark.parametrize("zero_weight", ["compute", "slope_only", "omit"])
def test_within_shard_map_over_data(memory, zero_weight):
    loss_fn, problem = logistic()
    problem = sparse(problem)
    (auc, info), grads = gradient_of(loss_fn, SGD)(*problem)
    loss_auc = lljax.build_loss_auc(
        loss_fn, SGD, memory=memory, microbatch_size=2, zero_weight=zero_weight
    )

    def on_a_device(policy, params, train, desired):
        def mean(policy, params):
            auc, info = loss_auc(policy, params, train, desired)
            losses = jax.lax.pmean(info.desired_losses, AXIS)
            return jax.lax.pmean(auc, AXIS), info._replace(desired_losses=losses)

        return jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(policy, params)

    whole, data, rows = jax.P(), jax.P(AXIS), jax.P(None, AXIS)
    of_info = LossAucInfo(whole, whole, rows if zero_weight == "omit" else None)
    run = jax.shard_map(
        on_a_device,
        mesh=make_mesh(4),
        in_specs=(rows, whole, data, data),
        out_specs=((whole, of_info), (rows, whole)),
    )
    (found_auc, found_info), (slopes, of_params) = jax.jit(run)(*problem)
    known = 1 if found_info.known_slopes is None else np.asarray(found_info.known_slopes)
    assert_same(
        (found_auc, found_info.desired_losses, slopes, of_params),
        (auc, info.desired_losses, grads[0] * known, grads[1]),
    )


@pytest.mark.parametrize("memory", STRATEGIES)
def test_within_shard_map_over_seeds(memory):
    """Each device has a run of its own."""
    loss_fn, problem = logistic()
    scales = jnp.array([0.5, 1.0, 1.5, 2.0])
    loss_auc = lljax.build_loss_auc(
        loss_fn, ADAMW, memory=memory, microbatch_size=8, zero_weight="slope_only"
    )

    def one(scale, policy, params, train, desired):
        params = jax.tree.map(lambda leaf: scale[0] * leaf, params)
        gradient = jax.value_and_grad(loss_auc, has_aux=True)
        _, total = gradient(policy, params, train, desired)
        policy = jax.lax.pcast(policy, (AXIS,), to="varying")
        (auc, _), slopes = gradient(policy, params, train, desired)
        return auc[None], slopes[None], total

    own, whole = jax.P(AXIS), jax.P()
    run = jax.shard_map(
        one, mesh=make_mesh(4), in_specs=(own, *[whole] * 4), out_specs=(own, own, whole)
    )
    aucs, slopes, total = jax.jit(run)(scales, *problem)
    assert_same(total, slopes.sum(axis=0))  # of weights that all runs share
    for number, scale in enumerate(scales):
        params = jax.tree.map(lambda leaf, scale=scale: scale * leaf, problem.params)
        (auc, _), (expected, _) = gradient_of(loss_fn, ADAMW)(*problem._replace(params=params))
        assert_same((aucs[number], slopes[number]), (auc, expected))


def compiled(problem, loss_fn, number, optimizer=SGD, split=False, **options):
    mesh = make_mesh(number)
    with jax.set_mesh(mesh):
        gradient = gradient_of(loss_fn, optimizer, data_axis=AXIS, **options)
        return gradient.lower(*place(problem, mesh, split)).compile()


@pytest.mark.parametrize("make", [transformer, pytest.param(logistic, marks=SLOW)])
@pytest.mark.parametrize("microbatch_size", [8, pytest.param(None, marks=SLOW)])
@pytest.mark.parametrize("batches", [False, True])
def test_what_devices_tell_each_other(make, microbatch_size, batches):
    """A sum a pass: no example and no row of the policy leaves its device."""
    loss_fn, problem = make()
    problem = in_batches(problem) if batches else problem
    program = compiled(problem, loss_fn, 4, ADAMW, microbatch_size=microbatch_size)
    work, num_steps = count_work(program), jax.tree.leaves(problem.policy)[0].shape[0]
    assert work.calls["all-gather"] == 0
    assert work.calls["all-reduce"] <= 4 * num_steps + 1  # L(theta_0) before the first step
    largest = max(leaf.size for leaf in jax.tree.leaves(problem.params))
    if not batches:
        assert set(work.calls) == {"all-reduce"}
        assert work.largest <= largest


@SLOW
def test_work_is_divided():
    loss_fn, problem = transformer()
    whole = count_work(compiled(problem, loss_fn, 1, microbatch_size=8)).multiplications
    for number in (2, 4, 8):
        program = compiled(problem, loss_fn, number, microbatch_size=8)
        part = count_work(program).multiplications
        assert part == pytest.approx(whole / number, rel=0.05)


@pytest.mark.parametrize("microbatch_size", [None, 8])
def test_a_run_and_contributions_over_devices(microbatch_size):
    """What the Learning Law is measured with, and no example leaves its device."""
    loss_fn, problem = logistic()

    def measure(policy, params, train, desired, axis=None):
        options = {"microbatch_size": microbatch_size, "data_axis": axis}

        def observe(params, _):
            return lljax.contributions(loss_fn, params, train, desired, **options)

        return lljax.unroll(loss_fn, SGD, policy, params, train, observe, **options)

    expected = jax.jit(measure)(*problem)
    mesh = make_mesh(4)
    with jax.set_mesh(mesh):
        program = jax.jit(functools.partial(measure, axis=AXIS)).lower(*place(problem, mesh))
        compiled = program.compile()
        assert_same(compiled(*place(problem, mesh)), expected)
    assert set(count_work(compiled).calls) == {"all-reduce"}


def test_a_policy_and_its_gradient_stay_split():
    loss_fn, problem = logistic()
    program = compiled(problem, loss_fn, 8, microbatch_size=8)
    of_policy = program.output_shardings[1][0]
    assert of_policy.shard_shape(problem.policy.shape) == (6, 4)
    states = program.memory_analysis()
    assert states.argument_size_in_bytes < sum(
        leaf.nbytes for leaf in jax.tree.leaves(tuple(problem))
    )


def test_spread_states_are_kept_in_parts():
    loss_fn, problem = transformer()
    steps = jnp.tile(problem.policy, (8, 1))
    problem = problem._replace(policy=steps)
    whole, spread = (
        compiled(problem, loss_fn, 8, ADAMW, memory=memory).memory_analysis().temp_size_in_bytes
        for memory in (lljax.StoreStates(), lljax.SpreadStates(AXIS))
    )
    state = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params))
    assert whole - spread > 0.8 * len(steps) * state * 7 / 8


def test_an_axis_that_is_not_there():
    loss_fn, problem = logistic()
    gradient = gradient_of(loss_fn, SGD, data_axis="examples")
    with pytest.raises(ValueError, match=r"`data_axis` must be an axis .* 'examples' and no mesh"):
        gradient(*problem)
    with jax.set_mesh(make_mesh(2)), pytest.raises(ValueError, match="'examples' and the axes da"):
        gradient(*problem)
    with pytest.raises(ValueError, match="`data_axis` must be the name of an axis"):
        lljax.build_loss_auc(loss_fn, SGD, data_axis=0)
    spread = gradient_of(loss_fn, SGD, memory=lljax.SpreadStates("rows"))
    with jax.set_mesh(make_mesh(2)), pytest.raises(ValueError, match="`axis` must be an axis"):
        spread(*problem)
