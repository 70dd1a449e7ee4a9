"""Trained weights: read from a file, loaded into a network of the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lnl.storage.files import open_file, zip_damage

HEADS = ("fc.", "head.", "heads.", "classifier.")  # prefixes of last layers, which are left out


def read(path: str) -> dict[str, Tensor]:
    """The state dict that `torch.save` wrote, alone or as the entry `model`, or a file of safetensors.

    Raises ValueError for anything else.
    """
    try:
        with open_file(Path(path).expanduser()) as file:
            if path.endswith(".safetensors"):
                from safetensors.torch import load as from_safetensors

                return _of_backbone(from_safetensors(file.read()))
            if damage := zip_damage(file):
                raise ValueError(damage)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated or foreign file can raise anything in the reader
        raise ValueError(
            f"the weights {path} cannot be read ({type(error).__name__}): give the path of a file that "
            "torch.save(network.state_dict(), path) wrote, a .safetensors file, or imagenet."
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):  # as Meta and Microsoft publish theirs
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"the weights {path} are no state dict: write them by torch.save(network.state_dict(), path).")
    return dict(state)


def _of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of weights that a trial has kept (`lnl.storage.kept`) those of its first backbone; any other state as it is."""
    first = next((name for name in state if ".backbone." in name), None)
    if first is None:
        return dict(state)
    prefix = f"{first.partition('.backbone.')[0]}.backbone."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def load(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `network`, leaving out the heads in `state`.

    Raises ValueError that names the first tensor which is missing, has another shape or does not exist in `network`.
    """
    own = network.state_dict()
    problem = next(
        (
            f"{key} is {_shape(state[key])} there and {_shape(value)} here"
            for key, value in own.items()
            if key in state and state[key].shape != value.shape
        ),
        None,
    )
    if problem is None:
        missing, unexpected = network.load_state_dict(state, strict=False)
        surplus = [key for key in unexpected if not key.startswith(HEADS)]
        problem = (
            f"{missing[0]} is missing there" if missing else f"{surplus[0]} does not exist here" if surplus else None
        )
    if problem is not None:
        raise ValueError(f"the weights {source} are of another network: {problem}.")


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"
