"""The recipe of "Synthetic Data for any Differentiable Target" (arXiv:2604.08423) as plain JAX.

Their engine (github.com/TristanThrush/dataset-policy-gradients, `dataset_metagradients_jax`) keeps
the state before every step and goes back over them one by one. At each it takes the gradient of the
batch again, pulls the cotangent back through the optimiser and then through that gradient, all of
which is computed anew for it (reverse over reverse), and gets the derivatives in the weights by a
second pass over the batch, a JVP of its losses. This is written from their description; one
compiled program in place of a call a step, states in memory in place of files, so that it is
faster than the engine itself.
"""

import jax
import jax.numpy as jnp

from benchmarks.contender import Contender, compiled_gradient
from benchmarks.problems import Problem, take


def recipe(microbatch_size: int | None = None):
    """The builder of a contender; `microbatch_size` divides B."""

    def build(problem: Problem) -> Contender:
        return compiled_gradient(_meta_gradient(problem, microbatch_size), problem)

    return build


def _meta_gradient(problem: Problem, microbatch_size: int | None):
    def split(values):
        """[B, ...] -> the micro-batches [M, m, ...]."""
        size = microbatch_size or problem.batch_size
        return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), values)

    def gradient(params, row, batch):
        def add(total, piece):
            row, batch = piece
            # Twice, as they have it: the gradient of a micro-batch, and the step of the loop.
            own = jax.checkpoint(jax.grad(lambda p: row @ problem.loss_fn(p, batch)))(params)
            return jax.tree.map(jnp.add, total, own), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(jax.checkpoint(add), zeros, split((row, batch)))[0]

    def slopes(params, direction, batch):
        def of_piece(_, batch):
            return None, jax.jvp(lambda p: problem.loss_fn(p, batch), (params,), (direction,))[1]

        return jax.lax.scan(of_piece, None, split(batch))[1].reshape(-1)

    def desired_loss(params, desired):
        return problem.loss_fn(params, desired).mean()

    def meta_gradient(policy, params, train, desired, index=None):
        def advance(state, step):
            row, places = step
            after = problem.update(gradient(state[0], row, take(train, places)), state)
            loss = None if problem.only_end else desired_loss(after[0], desired)
            return after, (state, loss)

        def back(cotangent, step):
            (params, opt_state), (row, places) = step
            batch = take(train, places)

            def update(gradient, params, moments):
                before = params, _with_moments(opt_state, moments)
                params, after = problem.update(gradient, before)
                return params, _moments(after)

            found, pull_back = jax.vjp(lambda p: gradient(p, row, batch), params)
            _, pull_update = jax.vjp(update, found, params, _moments(opt_state))
            direction, of_params, of_moments = pull_update(cotangent)
            parts = [of_params, *pull_back(direction)]
            if not problem.only_end:
                parts.append(of_loss(params))
            of_params = jax.tree.map(lambda *leaves: sum(leaves), *parts)
            return (of_params, of_moments), slopes(params, direction, batch)

        def of_loss(params):
            share = 1 if problem.only_end else 1 / problem.num_steps
            return jax.grad(lambda p: share * desired_loss(p, desired))(params)

        steps = policy, index
        end, (states, losses) = jax.lax.scan(
            advance, (params, problem.optimizer.init(params)), steps
        )
        loss = desired_loss(end[0], desired) if problem.only_end else losses.mean()
        cotangent = of_loss(end[0]), jax.tree.map(jnp.zeros_like, _moments(end[1]))
        _, found = jax.lax.scan(back, cotangent, (states, steps), reverse=True)
        return found, loss

    return meta_gradient


def _is_moment(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _moments(opt_state) -> list[jax.Array]:
    """The leaves of an optimiser's state that have a derivative."""
    return [leaf for leaf in jax.tree.leaves(opt_state) if _is_moment(leaf)]


def _with_moments(opt_state, moments):
    given = iter(moments)
    return jax.tree.map(lambda leaf: next(given) if _is_moment(leaf) else leaf, opt_state)
