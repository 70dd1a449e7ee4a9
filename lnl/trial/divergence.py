"""Divergence: how it is told from an error of the code.  It is a result of the method and not a failure of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from lnl import data
from lnl.methods import Method
from lnl.storage.objects import StorageError
from lnl.training.images import Images, in_parts
from lnl.training.learner import Learner
from lnl.training.state import Stateful, stateful_parts


class Diverged(RuntimeError):
    """Losses, weights or predictions are no longer finite: a result of the method, unlike a failure of the machine."""


def weights_are_finite(parts: Mapping[str, Stateful]) -> bool:
    """Whether all parameters and buffers of a method's parts are: networks, their averages, other modules.

    The answers of all tensors are collected on their device, so that it is waited for once.
    """
    modules = [
        module
        for part in parts.values()
        for module in (part.networks if isinstance(part, Learner) else [part])
        if isinstance(module, nn.Module)
    ]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@contextlib.contextmanager
def errors_of_divergence(epoch: int, method: Method, images: Images) -> Iterator[None]:
    """Within the block of one epoch, replace errors that divergence causes by `Diverged`.

    Libraries raise many kinds of errors for NaN, so that the kind does not tell.  An error is divergence where weights
    are not finite, where features or predictions of `images` (N, C, H, W) are not, and where it is an error of
    arithmetic itself.  Any other error is the code's own and passes unchanged.
    """
    try:
        yield
    except (Diverged, data.DataError, StorageError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # failures of the machine or the data; and a broken accelerator could not compute the tests below
    except Exception as error:
        arithmetic = isinstance(error, FloatingPointError | torch.linalg.LinAlgError)
        if not arithmetic and weights_are_finite(stateful_parts(method)) and _outputs_are_finite(method, images):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Diverged(f"Training broke down in epoch {epoch} ({reason}): lower the learning rate.") from error


def _outputs_are_finite(method: Method, images: Images) -> bool:
    """Whether features and predictions are, which they may not be for large finite weights.

    A function that raises says nothing of its outputs and counts as finite.
    """
    for call in (method.features, method.predict):
        with contextlib.suppress(Exception):
            if not in_parts(images, call).isfinite().all():
                return False
    return True
