"""Divergence: weights or outputs that are no longer finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    SerializeAsAny,
)
from torch import Tensor, nn

from lnl import data, methods
from lnl.storage.objects import StorageError
from lnl.training import learner

if TYPE_CHECKING:

    class MethodConfig:
        """For type checkers: what a trial's method may be given as, and what it is read as."""

        def __get__(self, trial: object, kind: type | None = None) -> BaseModel: ...
        def __set__(self, trial: object, value: str | Mapping[str, Any] | BaseModel) -> None: ...

else:  # a name, or {"name": …, field: value}
    MethodConfig = Annotated[SerializeAsAny[BaseModel], BeforeValidator(methods.configure)]


class Diverged(RuntimeError):
    """The method's own numbers are no longer finite, in losses, weights or predictions: an outcome, not an accident."""


def stateful(method: Any) -> dict[str, Any]:
    """The parts of a method that a snapshot stores."""
    return {name: part for name, part in vars(method).items() if hasattr(part, "load_state_dict")}


def _weights_are_finite(parts: Mapping[str, Any]) -> bool:
    """Parameters and statistics of all networks, averages and others; the device is waited for once."""
    modules = [
        module
        for part in parts.values()
        for module in (part.networks if isinstance(part, learner.Learner) else [part])
        if isinstance(module, nn.Module)
    ]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@contextlib.contextmanager
def _divergence(epoch: int, method: Any, images: Tensor) -> Iterator[None]:
    """Raise as `Diverged` what goes wrong in here because the method's own numbers are no longer finite.

    A library raises what it likes when it is handed NaN, so the kind of error tells nothing: it is divergence where
    weights, features or predictions are not finite, and where the arithmetic itself was found to break down.  With
    finite numbers an error is the code's, and stays what it is.
    """
    try:
        yield
    except (Diverged, data.DataError, StorageError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # accidents; and of an accelerator that broke nothing can be asked
    except Exception as error:
        arithmetic = isinstance(error, FloatingPointError | torch.linalg.LinAlgError)
        if not arithmetic and _weights_are_finite(stateful(method)) and _outputs_are_finite(method, images):
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Diverged(f"Training broke down in epoch {epoch} ({what}): lower the learning rate.") from error


def _outputs_are_finite(method: Any, images: Tensor) -> bool:
    """Finite weights may be so large that what they make of images is not.  What cannot be asked tells nothing."""
    for call in (method.features, method.predict):
        with contextlib.suppress(Exception):
            if not call(images).isfinite().all():
                return False
    return True
