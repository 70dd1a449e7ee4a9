"""The folder is the registry: one file per method, each with `Config`, `SEARCH` and `Method`."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor

from lnl.training.learner import NetworkBuilder
from lnl.training.streams import Streams
from lnl.training.task import Task


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
    """The methods: files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
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
    settings: Any = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ValueError(f"give a method's name, one of {', '.join(names())}, not {value!r}.")
    module = load(settings["name"])
    for name, default in module.Config():  # part of a nested setting keeps the rest of the method's own defaults
        if isinstance(default, BaseModel) and isinstance(settings.get(name), Mapping):
            settings = {**settings, name: {**default.model_dump(), **settings[name]}}
    config: BaseModel = module.Config.model_validate(settings)
    return config
