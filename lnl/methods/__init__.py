"""The folder is the registry: one file per method, each with `Config`, `SEARCH` and `Method`."""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor

from lnl.learner import NetworkBuilder
from lnl.streams import Streams
from lnl.task import Task


class Method(Protocol):
    """A learning algorithm.

    Its mutable state lives in attributes that have `state_dict` and `load_state_dict` (learners, streams, memories):
    that is what a checkpoint stores.
    """

    def __init__(self, config: Any, task: Task, network: NetworkBuilder, streams: Streams) -> None: ...

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Epoch `epoch` (from 0); returns scalars worth plotting, `loss` among them."""

    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities of normalised images. (B, C, H, W) -> (B, K)."""

    def features(self, images: Tensor) -> Tensor:
        """Backbone features, for evaluation by neighbours. (B, C, H, W) -> (B, D)."""


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The method's module.  Raises `ValueError` for an unknown name."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names())}."
        raise ValueError(f"there is no method '{name}': {hint}")
    return import_module(f"{__name__}.{name}")


def configure(value: Any) -> BaseModel:
    """A method's name, a dictionary with its `name`, or a ready `Config` -> a validated `Config`."""
    if isinstance(value, BaseModel):
        return value
    settings = {"name": value} if isinstance(value, str) else dict(value)
    if "name" not in settings:
        raise ValueError(f"method needs a name, one of {', '.join(names())}.")
    config: BaseModel = load(settings["name"]).Config.model_validate(settings)
    return config
