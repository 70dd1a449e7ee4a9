"""Files of trained prerequisites: the state of a trial that others start from, and the labels that it has given."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lnl.storage import checkpoints, kept
from lnl.storage.files import listed
from lnl.storage.objects import StorageError
from lnl.storage.part_names import parse_attempt
from lnl.storage.places import Place
from lnl.storage.store import Store
from lnl.training.learner import trained_backbone
from lnl.training.state import State
from lnl.trial.config import Trial, parse
from lnl.trial.provenance import Current

DIVERGED = "diverged"  # the only entry in the file of a prerequisite that diverged: the reason, a sentence


def save_trained(folder: Place, trial: Trial, parts: State, current: Current) -> None:
    """Write the parts of a trained prerequisite, by name, or {DIVERGED: reason}; all studies share the file.

    Raises `StorageError`.
    """
    path = current.trained_path(folder, trial)
    checkpoints.write(path, dict(parts), {"file": path.name})


def is_trained(store: Store, study: str, trial: Trial, current: Current) -> bool:
    """Whether the file of a trained prerequisite exists and is undamaged; a damaged one is set aside."""
    path = current.trained_path(store.trained, trial)
    return checkpoints.is_whole(store, study, trial.id, path, {"file": path.name})


def set_aside_damaged(store: Store, study: str, trial: Trial, current: Current) -> None:
    """Set aside the damaged files of all prerequisites of a trial, so that `run` reports them as missing."""
    for prerequisite in trial.prerequisites.values():
        labels = labels_path(current.trained_path(store.trained, prerequisite))
        checkpoints.is_whole(store, study, prerequisite.id, labels, {"file": labels.name})
        is_trained(store, study, prerequisite, current)
        set_aside_damaged(store, study, prerequisite, current)


def labels_path(trained: Place) -> Place:
    """Where the labels of a teacher are kept, given the path of its trained state."""
    return trained.with_suffix(".labels")


def final_backbone(store: Store, trial_id: str) -> tuple[Trial, Mapping[str, Tensor]]:
    """A trial of a results folder by its id, and the state of its trained backbone.

    The weights are those that its newest attempt has kept on request, else those of a trial that others start from.
    Raises `ValueError` where there is no such trial, `StorageError` where its weights are not kept or cannot be used.
    """
    rows, _ = store.read("trials", columns=["trial", "config"], filters=[("trial", "==", trial_id)])
    if rows.empty:
        raise ValueError(f"{store.root} has no trial '{trial_id}': ids are in the table trials, and in `lnl plan`.")
    trial = parse(json.loads(rows["config"].iloc[-1]))
    kept_files = listed(store.root / "weights", f"{trial_id}-*.safetensors", deep=True)
    if attempts := {parsed: path for path in kept_files if (parsed := parse_attempt(path.stem))}:
        return trial, _backbone_of(kept.read_weights(attempts[max(attempts)]))
    for path in listed(store.trained, f"{trial_id}-*.pt"):
        try:
            with checkpoints.fitting():
                return trial, trained_backbone(checkpoints.read(path, {"file": path.name}))
        except checkpoints.Refused as error:
            raise StorageError(f"{path} cannot be used, because {error}: run its study again.") from error
    raise StorageError(f"{store.root} has kept no weights of trial {trial_id}: run its study with --keep weights.")


def _backbone_of(weights: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The backbone of a method's first network, by name, among the weights that it has kept, in no order."""
    infix = ".backbone."
    part = min((name.partition(infix)[0] for name in weights if infix in name), default="")
    prefix = f"{part}{infix}"
    return {name.removeprefix(prefix): torch.tensor(w) for name, w in weights.items() if name.startswith(prefix)}
