"""What a way to a meta-gradient looks like to the benchmark."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.problems import Problem


class MissingError(Exception):
    """What a contender needs is not here; the message says how to get it."""


@dataclasses.dataclass
class Contender:
    """A meta-gradient ready to be computed."""

    gradient: Callable[[], Any]  # d AUC / d gamma [T, N], an array of its own kind
    compile_seconds: float = 0.0
    temporary_bytes: int | None = None  # as the compiler plans it


def compiled(loss_auc: Callable, problem: Problem) -> Contender:
    """The gradient of a function (policy, params, train, desired, ..) -> (AUC, anything)."""
    return compiled_gradient(jax.grad(loss_auc, has_aux=True), problem)


def compiled_gradient(gradient: Callable, problem: Problem) -> Contender:
    """A function (policy, params, train, desired, ..) -> (gradient in the policy, anything)."""
    started = time.perf_counter()
    program = jax.jit(gradient).lower(*problem.arguments).compile()
    seconds = time.perf_counter() - started
    stats: Any = program.memory_analysis()
    return Contender(lambda: program(*problem.arguments)[0], seconds, stats.temp_size_in_bytes)
