"""Methods by name: the files in this folder, those of installed packages, and a user's own.

Each is a module with `USES`, `SEARCH`, `Config` and `Method`.  `load` is the one place where names are looked up:
those of files in this folder, those that installed packages announce by entry points of the group `lnl.methods`, and
references to a user's own code, `my_method.py` or `package.module`, see `lnl.system.user_code`.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, cast

from pydantic import BaseModel, ValidationError, create_model

from lnl.settings import Settings
from lnl.space import Space
from lnl.system import user_code

if TYPE_CHECKING:  # so that a shell completes names of methods without importing torch
    from torch import Tensor

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


GROUP = "lnl.methods"  # of the entry points by which installed packages announce methods
LEARNS_FROM = ("labels", "unlabelled", "probe", "two networks")  # what `USES` may name
PARTS = ("USES", "SEARCH", "Config", "Method")


def names() -> list[str]:
    """The names of the package's own methods, which are the names of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def installed() -> list[str]:
    """The names of the methods that installed packages announce; a name that a file here has stays that file's."""
    return sorted(user_code.announced(GROUP).keys() - set(names()))


def reference(name: str) -> str | None:
    """Where a method that is no file of this folder comes from, see `lnl.system.user_code`; None for one that is."""
    if name in names():
        return None
    return user_code.announced(GROUP).get(name) or (
        user_code.normalised(name) if user_code.is_reference(name) else None
    )


@cache
def load(name: str) -> MethodModule:
    """The module of the method `name`, imported.

    Raises `ValueError` with one sentence for an unknown name, and where a user's own module is no method.
    """
    if name in names():
        return cast("MethodModule", import_module(f"{__name__}.{name}"))
    if (place := reference(name)) is not None:
        return _named(name, user_code.load(place))
    known = [*names(), *installed()]
    close = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(known)}, or give a file, such as my.py."
    )
    raise ValueError(f"there is no method '{name}': {hint}")


def _named(name: str, module: Any) -> MethodModule:
    """A user's own method as one whose `Config` has the field `name`, which need not be written in its file."""
    if missing := [part for part in PARTS if not hasattr(module, part)]:
        raise ValueError(
            f"{name} is no method, because it defines no {missing[0]}: a method has {', '.join(PARTS)}, as in the file "
            "that `lnl new method NAME` writes."
        )
    config, uses = module.Config, module.USES
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise ValueError(f"{name}: Config must be a class of `lnl.settings.Settings`.")
    if not isinstance(uses, tuple) or not set(uses) <= set(LEARNS_FROM):
        raise ValueError(f"{name}: USES must be a tuple of some of {', '.join(LEARNS_FROM)}, not {uses!r}.")
    literal: Any = Literal[name]
    named = create_model("Config", __base__=config, __module__=config.__module__, name=(literal, name))
    try:
        named()
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"{name}: every field of Config needs a valid default, and '{field}' has none.") from None
    own = ModuleType(name, module.__doc__)
    vars(own).update(USES=uses, SEARCH=module.SEARCH, Config=named, Method=module.Method)
    own.WHERE = getattr(module, "WHERE", {})  # type: ignore[attr-defined]  # see `lnl.trial.contract`
    return cast("MethodModule", own)


def configure(value: object) -> BaseModel:
    """The validated `Config` of a method, from its name, from a dictionary with its `name`, or from a `Config`.

    Of a nested setting such as `optimizer` the fields that are left out keep the method's own defaults.  Raises
    `ValueError` for anything else and for an unknown name, pydantic's `ValidationError` for unsuitable fields.
    """
    if isinstance(value, BaseModel):
        if not hasattr(value, "name"):
            raise ValueError("a method of your own is given by its file: {'name': 'my_method.py', field: value, …}.")
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ValueError(f"give a method's name, one of {', '.join(names())}, not {value!r}.")
    if user_code.is_reference(settings["name"]):
        settings = {**settings, "name": user_code.normalised(settings["name"])}
    module = load(settings["name"])
    for name, default in module.Config():
        if isinstance(default, BaseModel) and isinstance(nested := settings.get(name), Mapping):
            settings = {**settings, name: {**default.model_dump(), **nested}}
    return module.Config.model_validate(settings)
