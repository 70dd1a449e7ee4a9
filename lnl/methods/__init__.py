"""The folder is the registry: one file per method, each with `Config`, `SEARCH` and `Method`."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Protocol, TypeGuard, cast

from pydantic import BaseModel
from torch import Tensor

from lnl.space import Space
from lnl.training.learner import NetworkBuilder
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Task


class Method(Protocol):
    """A learning algorithm on the task of one trial.

    Its mutable state lives in attributes that have `state_dict` and `load_state_dict` (learners, streams, records):
    these are what a checkpoint stores, see `lnl.training.state`.
    """

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Train for epoch `epoch`, counted from 0; returns scalars by name for the curves, `loss` among them."""

    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities of normalised images. (B, C, H, W) -> (B, K)."""

    def features(self, images: Tensor) -> Tensor:
        """Backbone features, for evaluation by neighbours. (B, C, H, W) -> (B, D)."""


class HasBeliefs(Protocol):
    """A method that can tell what it has come to think of the training labels."""

    def beliefs(self) -> Beliefs:
        """The method's present opinion of each training label, see `Beliefs`."""


def has_beliefs(method: Method) -> TypeGuard[HasBeliefs]:
    """Whether a method has beliefs to tell.  (Not `isinstance`, which remembers its first answer for a class.)"""
    return hasattr(method, "beliefs")


class MakesMethod(Protocol):
    """The constructor of a method: from its `Config`, what it may see, how networks are built, and random streams."""

    def __call__(self, config: BaseModel, task: Task, network: NetworkBuilder, streams: Streams) -> Method: ...


class MethodModule(Protocol):
    """What the file of a method defines."""

    USES: tuple[str, ...]  # which parts of a task it learns from: labels, unlabelled, probe, two networks
    SEARCH: Mapping[str, Space]  # dotted field of a trial -> the values that a search may try
    Config: type[BaseModel]
    Method: MakesMethod


def names() -> list[str]:
    """The names of all methods, which are the names of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def load(name: str) -> MethodModule:
    """The file of the method `name`, imported.  Raises `ValueError` for an unknown name."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names())}."
        raise ValueError(f"there is no method '{name}': {hint}")
    return cast("MethodModule", import_module(f"{__name__}.{name}"))


def configure(value: object) -> BaseModel:
    """The validated `Config` of a method, from its name, from a dictionary with its `name`, or from a `Config`.

    Of a nested setting such as `optimizer` the fields that are left out keep the method's own defaults.  Raises
    `ValueError` for anything else and for an unknown name, pydantic's `ValidationError` for unsuitable fields.
    """
    if isinstance(value, BaseModel):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ValueError(f"give a method's name, one of {', '.join(names())}, not {value!r}.")
    module = load(settings["name"])
    for name, default in module.Config():
        if isinstance(default, BaseModel) and isinstance(nested := settings.get(name), Mapping):
            settings = {**settings, name: {**default.model_dump(), **nested}}
    return module.Config.model_validate(settings)
