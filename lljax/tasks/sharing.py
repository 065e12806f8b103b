"""What a task reads: of several processes by the first one alone."""

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import jax
import numpy as np

from lljax import cluster


class Shared(Protocol):
    """What is read."""

    def elsewhere(self) -> Self:
        """The same for the processes that have not read it: small enough to be sent to all.

        Examples become `shapes_of` them: each process is sent those of its devices later. What
        only the first process writes or shows is left out.
        """
        ...


T = TypeVar("T", bound=Shared)


def read_examples(read: Callable[[], T]) -> T:
    """What `read` returns: whole in the first process, which alone calls it, `elsewhere` in others.

    A task that reads its data so gives its Problem `read_by_first=cluster.has_peers()`. What `read`
    raises is raised in all.
    """
    mine: list[T] = []

    def told() -> T:
        mine.append(read())
        return mine[0].elsewhere() if cluster.has_peers() else mine[0]

    found = cluster.from_first(told)
    return mine[0] if mine else found


def shapes_of(batch: Any) -> Any:
    """A tree of the shapes and dtypes of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), batch)
