"""Files of trained networks that other trials start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    SerializeAsAny,
)

from lnl import methods
from lnl.storage import checkpoints
from lnl.storage.places import Place
from lnl.storage.store import Store
from lnl.trial.provenance import Current

if TYPE_CHECKING:

    class MethodConfig:
        """For type checkers: what a trial's method may be given as, and what it is read as."""

        def __get__(self, trial: object, kind: type | None = None) -> BaseModel: ...
        def __set__(self, trial: object, value: str | Mapping[str, Any] | BaseModel) -> None: ...

else:  # a name, or {"name": …, field: value}
    MethodConfig = Annotated[SerializeAsAny[BaseModel], BeforeValidator(methods.configure)]
from lnl.trial.config import Trial

DIVERGED = "diverged"  # the only entry of the file of a trained prerequisite that diverged: why, in words


def save_trained(folder: Place, trial: Trial, parts: Mapping[str, Any], current: Current) -> None:
    """Keep the state of a trained prerequisite, for all studies.  Raises `StorageError`."""
    path = current.trained_path(folder, trial)
    checkpoints.write(path, dict(parts), {"file": path.name})


def is_trained(store: Store, study: str, trial: Trial, current: Current) -> bool:
    """Whether what a prerequisite has learnt is there and whole; a file that is not is set aside."""
    path = current.trained_path(store.trained, trial)
    return checkpoints.is_whole(store, study, trial.id, path, {"file": path.name})


def set_aside_damaged(store: Store, study: str, trial: Trial, current: Current) -> None:
    """Of all that a trial starts from, so that `run` finds it missing and says so."""
    for prerequisite in trial.prerequisites.values():
        labels = _labels_path(current.trained_path(store.trained, prerequisite))
        checkpoints.is_whole(store, study, prerequisite.id, labels, {"file": labels.name})
        is_trained(store, study, prerequisite, current)
        set_aside_damaged(store, study, prerequisite, current)


def _labels_path(trained: Place) -> Place:
    return trained.with_suffix(".labels")
