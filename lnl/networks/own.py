"""A backbone of a user's own: `my_network.py`, or `my_network.py:narrow` where the file has several functions."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import nn

from lnl.system import user_code


class OwnBackbone(nn.Module):
    """What a user's function returns: (B, C, H, W) -> (B, width)."""

    width: int


def builder(reference: str) -> Callable[[int, int], OwnBackbone]:
    """The function behind a reference, (channels, size) -> backbone, with its errors and its result checked.

    Raises `ValueError` with one sentence where there is no such function, or several without a name that chooses one.
    """
    function = user_code.load(reference)
    if isinstance(function, ModuleType):
        names = user_code.public_names(function)
        functions = [name for name in names if not isinstance(getattr(function, name), type)]
        if len(functions) != 1:
            example = f"{reference}:{(functions or ['name'])[0]}"
            raise ValueError(
                f"{reference} must define one function (channels, size) -> backbone, or the name says which, as in "
                f"'{example}': it defines {', '.join(functions) or 'none'}."
            )
        function = getattr(function, functions[0])
    if not callable(function):
        raise ValueError(f"{reference} is no function (channels, size) -> backbone.")
    return _Checked(reference, function)


class _Checked:
    def __init__(self, reference: str, function: Callable[[int, int], object]) -> None:
        self.reference, self.function = reference, function

    def __call__(self, channels: int, size: int) -> OwnBackbone:
        try:
            network = self.function(channels, size)
        except Exception as error:  # whatever a user's function does
            raise ValueError(
                f"{self.reference} builds no network for images of {channels} × {size} × {size} "
                f"({type(error).__name__}: {error})."
            ) from error
        if not isinstance(network, nn.Module) or not isinstance(getattr(network, "width", None), int):
            raise ValueError(
                f"{self.reference} must return a torch.nn.Module (B, C, H, W) -> (B, width), with its `width` as a "
                f"whole number, not {type(network).__name__}."
            )
        return network  # type: ignore[return-value]  # a module with a width
