"""What can be reached from a value: whether a method holds what it must not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def leaves(thing: Any, visited: set[int] | None = None) -> Iterator[Any]:
    """Everything that can be reached from a value, closures included, and is no container."""
    visited = set() if visited is None else visited
    if isinstance(thing, Tensor | np.ndarray | str | int | float | type | ModuleType) or thing is None:
        yield thing
    elif id(thing) not in visited:
        visited.add(id(thing))
        if isinstance(thing, Mapping):
            inside = list(thing.values())
        elif isinstance(thing, list | tuple | set):
            inside = list(thing)
        elif isinstance(thing, partial):
            inside = [thing.func, thing.args, thing.keywords]
        elif isinstance(thing, FunctionType):
            inside = [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, MethodType):
            inside = [thing.__self__, thing.__func__]
        else:
            inside = [vars(thing)] if hasattr(thing, "__dict__") else []
        for part in inside:
            yield from leaves(part, visited)


def tells(thing: Any, truth: Tensor, hidden: Sequence[Tensor]) -> bool:
    """Whether anything reachable holds the true labels of all images, or of those at `hidden[i]`."""
    answers = [truth, *(truth[index] for index in hidden)]
    arrays = [torch.as_tensor(leaf) for leaf in leaves(thing) if isinstance(leaf, Tensor | np.ndarray)]
    return any(
        array.shape == answer.shape and torch.equal(array.long(), answer) for array in arrays for answer in answers
    )
