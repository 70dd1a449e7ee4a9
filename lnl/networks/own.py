"""A backbone of a user's own: `my_network.py`, or `my_network.py:narrow` where the file has several functions.

A function of two parameters, (channels, size), builds one for images, and one of one parameter, (length), for vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from types import ModuleType

from torch import nn

from lnl.system import user_code


class OwnBackbone(nn.Module):
    """What a user's function returns: (B, C, H, W), or vectors (B, D) -> (B, width)."""

    width: int


def builder(reference: str) -> Builder:
    """The function behind a reference, with its errors and its result checked.

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
        raise ValueError(f"{reference} is no function (channels, size) -> backbone, or (length) -> backbone.")
    return Builder(reference, function)


class Builder:
    """A user's function: (channels, size) -> backbone, or (length) -> backbone of vectors."""

    def __init__(self, reference: str, function: Callable[..., object]) -> None:
        self.reference, self.function = reference, function
        kinds = [parameter.kind for parameter in signature(function).parameters.values()]
        self.takes_images = kinds not in ([Parameter.POSITIONAL_ONLY], [Parameter.POSITIONAL_OR_KEYWORD])

    def __call__(self, *sizes: int) -> OwnBackbone:
        """The backbone for images of (channels, size), or for vectors of (length,).  Raises `ValueError`."""
        try:
            network = self.function(*sizes)
        except Exception as error:  # whatever a user's function does
            of = f"images of {sizes[0]} × {sizes[-1]} × {sizes[-1]}" if self.takes_images else f"vectors of {sizes[0]}"
            raise ValueError(
                f"{self.reference} builds no network for {of} ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(network, nn.Module) or not isinstance(getattr(network, "width", None), int):
            shape = "(B, C, H, W)" if self.takes_images else "(B, D)"
            raise ValueError(
                f"{self.reference} must return a torch.nn.Module {shape} -> (B, width), with its `width` as a "
                f"whole number, not {type(network).__name__}."
            )
        return network  # type: ignore[return-value]  # a module with a width
