"""The outer loop for training runs that are drawn anew at every step: initialisation, order, data.

Where a run is drawn, an AUC is a number with noise, and a trial that seems worse may not be. So no
step is taken back: every outer step is a plain one of the method, the iterates are averaged, and
runs that were never optimised on choose among the candidates.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lljax import checks
from lljax.meta_optimizer import check_meta_optimizer
from lljax.outer_loop import check_arrays, is_traced
from lljax.simplex import check_simplices
from lljax.slopes import is_finite, mask_of
from lljax.types import MetaOptimizer


class DrawnObjective(Protocol):
    """The AUC of a training run that a key draws; a pure function."""

    def __call__(self, policy: Any, key: jax.Array, /) -> tuple[jax.Array, Any]:
        """(gamma or psi, key) -> (AUC [], info); `info.known_slopes` as in `types.Objective`."""
        ...


class OptimizedOverRuns(NamedTuple):
    """What `optimize_over_runs` returns. C = num_steps / validate_every + 1, V validation runs."""

    policy: Any  # the candidate with the lowest mean AUC over the validation runs
    auc: jax.Array  # [] that mean
    step: jax.Array  # [] int, the outer step after which it was found; 0: the start
    is_average: jax.Array  # [] bool, whether it is the running average
    last: Any  # the last iterate
    average: Any  # the last running average
    run_aucs: jax.Array  # [num_steps, R] of the runs of each step, at the policy before it
    validation_steps: jax.Array  # [C] int, the outer steps after which candidates were evaluated
    validation_aucs: jax.Array  # [C, 2, V] of the iterate and of the running average there
    finite: jax.Array  # [num_steps] bool: AUCs and meta-gradient of a step; others were left out


def optimize_over_runs(
    objective: DrawnObjective,
    policy: Any,
    key: jax.Array,
    *,
    optimizer: MetaOptimizer,
    num_steps: int,
    validation_key: jax.Array,
    validation_objective: DrawnObjective | None = None,
    num_runs: int = 4,
    num_validation_runs: int = 16,
    validate_every: int = 5,
    averaging: float = 3.0,
) -> OptimizedOverRuns:
    """Improves a policy in the mean over runs, by steps on runs that are drawn anew each time.

      psi_s = step of the method along 1/R sum_r dAUC_r/dpsi at psi_{s-1}
      average_s = (1 - c) average_{s-1} + c psi_s,  c = (eta + 1) / (s + eta)

    No step is rejected. The average gives iterate s a weight that grows like s^eta, so that it is
    one of the last iterates, whenever one stops; an average of distributions is a distribution.
    V validation runs, drawn once, evaluate the start and, every `validate_every` steps, iterate and
    average; the best is returned. They are the same for all candidates, so that what they have in
    common does not decide. The best of many has been lucky there: measure its gain on other runs.

    A step whose AUCs or meta-gradient are not finite is left out, which `finite` says. Candidates
    whose mean AUC is not finite are not chosen.

    >>> import jax, jax.numpy as jnp, optax, lljax
    >>> loss_auc = lljax.build_loss_auc(lambda w, b: (b["x"] - w) ** 2, optax.sgd(0.1))
    >>> train, desired = {"x": jnp.array([1.0, -3.0])}, {"x": jnp.ones(2)}
    >>> def objective(w, key):
    ...   inputs = lljax.draw_batches(w, key, num_steps=5, batch_size=4)
    ...   return loss_auc(inputs, jnp.zeros(()), train, desired)
    >>> result = lljax.optimize_over_runs(
    ...   objective, jnp.array([0.5, 0.5]), jax.random.key(0), validation_key=jax.random.key(1),
    ...   optimizer=lljax.exponentiated_gradient(1.0), num_steps=5)
    >>> bool(result.policy[1] < 0.2)
    True

    Args:
      objective: (policy, key) -> (AUC [], info), pure; the key draws the run. Data that are large
        or change between calls are best made arguments of the compiled function around this one.
      policy: to start from: gamma [T, N], or a pytree psi of floating arrays.
      key: draws the runs of all steps.
      optimizer: the method; its `restart` and `scale` are not used.
      num_steps: outer steps, a multiple of `validate_every`.
      validation_key: draws the validation runs; another one than `key`.
      validation_objective: what chooses, for example the AUC on other desired examples; `objective`
        when None.
      num_runs: R, runs in one vmapped call.
      num_validation_runs: V.
      validate_every: outer steps from one evaluation of candidates to the next.
      averaging: eta >= 0. 0 is the mean of all iterates; with 3 half of the weight lies on the last
        16 % of them.

    Returns:
      OptimizedOverRuns. Cost: R meta-gradients a step, and V runs forward for the start and twice V
      at each evaluation. Memory: R runs, each with what its memory strategy keeps; V runs forward,
      which keep nothing; five arrays like `policy` and the method's state.

    Raises:
      ValueError: a shape or dtype does not fit, a count is out of range, or (outside jit) a row of
        `policy` is not on the simplex where the method needs it there, or its AUC is not finite.

    Reference: O. Shamir and T. Zhang, ICML 2013 (the average).
    """
    checks.check_callable(objective, "objective", "(policy, key) -> (AUC, info)")
    check_meta_optimizer(optimizer)
    for name, count in (
        ("num_steps", num_steps),
        ("num_runs", num_runs),
        ("num_validation_runs", num_validation_runs),
        ("validate_every", validate_every),
    ):
        checks.check_count(name, count)
    if num_steps % validate_every:
        raise ValueError(
            f"`validate_every` must divide `num_steps`, so that the last iterate is a candidate; "
            f"got {validate_every} and {num_steps}."
        )
    eta = averaging
    checks.check_number("averaging", eta, "a finite number >= 0", lambda x: 0 <= x < math.inf)
    check_arrays(policy)
    if optimizer.on_simplices:
        check_simplices(policy)
    for name, one in (("key", key), ("validation_key", validation_key)):
        _check_key(name, one)
    chooses, chooses_name = validation_objective, "validation_objective"
    if chooses is None:
        chooses, chooses_name = objective, "objective"
    checks.check_callable(chooses, chooses_name, "(policy, key) -> (AUC, info)")

    def mean_auc(policy, keys):
        def run(policy, key):
            auc, info = _value_of("objective", objective(policy, key))
            return auc, mask_of(info, policy)

        aucs, known = jax.vmap(run, in_axes=(None, 0))(policy, keys)
        # A slope that one of the runs does not know is not known in the mean.
        known = jax.tree.map(lambda leaf: jnp.all(leaf, axis=0), known)
        return jnp.mean(aucs), (aucs, known)

    def step(carry, number):
        before, state, average = carry
        keys = jax.random.split(jax.random.fold_in(key, number), num_runs)
        (_, (aucs, known)), gradient = jax.value_and_grad(mean_auc, has_aux=True)(before, keys)
        after = optimizer.update(gradient, state, before, 1.0, known)
        finite = jnp.isfinite(aucs).all() & is_finite(gradient)
        policy, state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), after, (before, state)
        )
        average = jax.tree.map(
            lambda old, new: running_average(old, new, number, eta), average, policy
        )
        return (policy, state, average), (aucs, finite)

    validation_keys = jax.random.split(validation_key, num_validation_runs)

    def validate(policy):
        def run(key):
            return _value_of(chooses_name, chooses(policy, key))[0]

        return jax.vmap(run)(validation_keys)

    def block(carry, first):
        carry, best = carry
        carry, seen = jax.lax.scan(step, carry, first + jnp.arange(validate_every))
        iterate, _, average = carry
        candidates = jax.tree.map(lambda *leaves: jnp.stack(leaves), iterate, average)
        aucs = jax.lax.map(validate, candidates)  # one after the other: the memory of V runs
        for is_average, candidate in enumerate((iterate, average)):
            found = _Best(
                candidate,
                jnp.mean(aucs[is_average]),
                jnp.asarray(first + validate_every - 1),
                jnp.array(bool(is_average)),
            )
            # The order of the comparison lets a number win over NaN.
            better = jnp.isfinite(found.auc) & ~(found.auc >= best.auc)
            best = jax.tree.map(lambda new, old, b=better: jnp.where(b, new, old), found, best)
        return (carry, best), (seen, aucs)

    policy = jax.tree.map(jnp.asarray, policy)
    start_aucs = validate(policy)
    best = _Best(policy, jnp.mean(start_aucs), jnp.array(0), jnp.array(False))
    if not is_traced(best.auc) and not jnp.isfinite(best.auc):
        raise ValueError(
            f"there is nothing to improve: the mean AUC of `policy` over the validation runs is "
            f"{float(best.auc)}; it is not finite in {int((~jnp.isfinite(start_aucs)).sum())} of "
            f"{num_validation_runs} runs."
        )
    begin = policy, optimizer.init(policy), policy
    firsts = jnp.arange(1, num_steps + 1, validate_every)
    ((last, _, average), best), (seen, aucs) = jax.lax.scan(block, (begin, best), firsts)
    run_aucs, finite = (leaf.reshape(num_steps, *leaf.shape[2:]) for leaf in seen)
    return OptimizedOverRuns(
        policy=best.policy,
        auc=best.auc,
        step=best.step,
        is_average=best.is_average,
        last=last,
        average=average,
        run_aucs=run_aucs,
        validation_steps=jnp.arange(0, num_steps + 1, validate_every),
        validation_aucs=jnp.concatenate([jnp.stack([start_aucs, start_aucs])[None], aucs]),
        finite=finite,
    )


class _Best(NamedTuple):
    """The best candidate so far."""

    policy: Any
    auc: jax.Array
    step: jax.Array
    is_average: jax.Array


def running_average(
    average: jax.Array, iterate: jax.Array, number: jax.Array, eta: float
) -> jax.Array:
    """The running average after iterate `number`, counted from 1: that one itself at the first."""
    count = number.astype(average.dtype)
    share = (eta + 1) / (count + eta)
    return (1 - share) * average + share * iterate


def _check_key(name: str, key: Any) -> None:
    """ValueError unless it is one key of jax.random."""
    try:
        jax.eval_shape(lambda key: jax.random.split(key), key)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a key, jax.random.key(0); got {key!r}.") from error


def _value_of(name: str, found: Any) -> tuple[jax.Array, Any]:
    """What an objective gave; ValueError unless it is (a floating [], info)."""
    if not isinstance(found, tuple) or len(found) != 2:
        got = f"a {type(found).__name__}"
    elif jnp.shape(found[0]) != () or not jnp.issubdtype(jnp.result_type(found[0]), jnp.floating):
        got = f"an AUC of shape {jnp.shape(found[0])} and dtype {jnp.result_type(found[0])}"
    else:
        return found
    raise ValueError(
        f"`{name}(policy, key)` must return (AUC, info), a floating number and anything else; got "
        f"{got}."
    )
