"""Torch's optimizers, without the compiler that they prepare for and that nothing here uses."""

from __future__ import annotations

import functools
import inspect
from typing import TypeVar, cast

import torch

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)
GUARDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


@functools.cache
def eager(kind: type[AnyOptimizer]) -> type[AnyOptimizer]:
    """The same optimizer, to be used outside `torch.compile` only.

    Torch guards methods of its optimizers against being compiled.  The first guard that is called imports the compiler,
    `torch._dynamo`: over a second and 70 MB in every process that trains.  Here the methods are called as they stand
    within their guards; that of `step` has turned gradients off, too.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in GUARDED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[AnyOptimizer], type(kind.__name__, (kind,), methods))
