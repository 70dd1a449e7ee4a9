"""One trial: its configuration (frozen, validated, hashed) and `run`, a generator of one row per epoch.

Everything in `Trial` is identity: it may change the result, and it is hashed into the trial's id.  Everything in
`Execution` is not: where and how fast the trial runs never changes its id.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    SerializeAsAny,
)
from torch import Tensor

from lnl import data, methods
from lnl.storage import checkpoints
from lnl.storage.places import Place
from lnl.training import learner, task
from lnl.training.streams import Streams, digest
from lnl.training.task import Noise, Validation
from lnl.trial.provenance import Current

if TYPE_CHECKING:

    class MethodConfig:
        """For type checkers: what a trial's method may be given as, and what it is read as."""

        def __get__(self, trial: object, kind: type | None = None) -> BaseModel: ...
        def __set__(self, trial: object, value: str | Mapping[str, Any] | BaseModel) -> None: ...

else:  # a name, or {"name": …, field: value}
    MethodConfig = Annotated[SerializeAsAny[BaseModel], BeforeValidator(methods.configure)]
from lnl.trial.config import Trial
from lnl.trial.divergence import Diverged, _divergence, _weights_are_finite, stateful
from lnl.trial.evaluation import _moments, diagnose, embed, evaluate
from lnl.trial.trained import DIVERGED, _labels_path

__all__ = ["Diverged", "Execution", "Noise", "Row", "Trial", "Validation", "run"]


@dataclass(frozen=True)
class Execution:
    """Where a trial runs.  Never part of its identity."""

    device: str = "auto"  # auto: cuda where there is one, else cpu
    threads: int | None = 1  # of the CPU; None: torch's default
    data: Path | None = None  # folder of the data sets; None: lnl.data's default
    trained: Place | None = None  # folder of trained prerequisites; None: train them here, first
    embeddings: int = 0  # test images whose features are kept, over the epochs

    def torch_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


@dataclass(frozen=True)
class Row:
    """State after `epoch` (1-based) epochs.  `snapshot()` is valid until the generator goes on."""

    epoch: int
    step: int
    seconds: float
    metrics: dict[tuple[str, str], float]  # (split, metric) -> value
    facts: Mapping[str, Any]  # what was realised: rate, transition, hashes, parameters
    arrays: dict[tuple[str, str], Tensor]  # (split, name) -> what a figure of this epoch needs, float32 on the CPU
    snapshot: Callable[[], dict[str, Any]] = field(repr=False)


def assemble(trial: Trial, execution: Execution) -> tuple[Any, task.Task, task.Truth]:
    """The method before its first step, what it sees, and what it does not.  Raises `lnl.data.DataError`."""
    seen, truth = draw(trial, execution)
    return build(trial, execution, seen), seen, truth


def draw(trial: Trial, execution: Execution) -> tuple[task.Task, task.Truth]:
    """What a trial's method sees, and what it does not.  Raises `lnl.data.DataError`."""
    _set_threads(execution)
    taught = None
    if teacher := trial.prerequisites.get("teacher"):
        try:
            taught = _taught(teacher, _trained(teacher, execution), execution)
        except Diverged as error:  # no outcome of this trial's method, which never began: there are no labels
            raise data.DataError(f"The teacher of the noise gives no labels: {error}") from error
    return task.prepare(
        trial.dataset,
        Streams(trial.replicate),
        execution.torch_device(),
        execution.data,
        labels=trial.labels,
        unlabelled_ratio=trial.unlabelled_ratio,
        probe=trial.probe,
        validation=trial.validation,
        noise_settings=trial.noise,
        epochs=trial.epochs,
        steps=trial.steps,
        taught=taught,
        probe_apart="probe" in methods.load(trial.method_name).USES,
    )


def _set_threads(execution: Execution) -> None:
    if execution.threads:
        torch.set_num_threads(execution.threads)


def build(trial: Trial, execution: Execution, seen: task.Task) -> Any:
    """The method before its first step.  Raises `lnl.data.DataError`, and `Diverged` where what it starts from did."""
    source = trial.prerequisites.get("initialisation")
    initial = _backbone(source, _trained(source, execution), execution) if source else None
    _set_threads(execution)
    device = execution.torch_device()
    _, channels, size, _ = seen.images.shape
    streams = Streams(trial.replicate, device)
    network = learner.NetworkBuilder(
        trial.network,
        channels,
        size,
        device,
        trial.precision,
        streams,
        trial.weights,
        trial.resize,
        initial,
    )
    try:
        return methods.load(trial.method_name).Method(trial.method, seen, network, streams)
    except data.DataError:
        raise
    except checkpoints.Refused as error:
        assert source is not None
        raise Unusable(source, execution, error) from error
    except ValueError as error:  # what a method asks of its trial: epochs enough, a probe, …
        raise data.Unfit(str(error)) from error


class Unusable(data.DataError):
    """What a trained prerequisite has left is missing, damaged or does not fit."""

    def __init__(self, trial: Trial, execution: Execution, reason: Exception) -> None:
        self.trial, self.reason = trial.id, reason
        folder = execution.trained
        self.path = None if folder is None else Current(execution.data).trained_path(folder, trial)
        super().__init__(
            f"The trained prerequisite {trial.id} ({trial.method_name}) cannot be used from {self.path}, because "
            f"{reason}: run the study again, which trains it again."
        )


def _backbone(source: Trial, parts: Mapping[str, Any], execution: Execution) -> dict[str, Tensor]:
    """Where training starts, from the parts of a prerequisite.  Raises `Unusable` where they hold none."""
    try:
        with checkpoints.fitting():
            return learner.trained_backbone(parts)
    except checkpoints.Refused as error:
        raise Unusable(source, execution, error) from error


def _trained(trial: Trial, execution: Execution) -> dict[str, Any]:
    """The parts of a prerequisite after its last epoch.

    Raises `Unusable` where they cannot be had, `Diverged` where there are none because it diverged.
    """
    if execution.trained is None:
        try:
            *_, row = run(trial, execution)
        except Diverged as error:
            raise _diverged_before(trial, str(error)) from error
        parts: dict[str, Any] = row.snapshot()["parts"]
        return parts
    path = Current(execution.data).trained_path(execution.trained, trial)
    try:
        parts = checkpoints.read(path, {"file": path.name})
    except FileNotFoundError as error:
        raise Unusable(trial, execution, checkpoints.Refused("it is not there")) from error
    except checkpoints.Refused as error:
        raise Unusable(trial, execution, error) from error
    if DIVERGED in parts:
        raise _diverged_before(trial, parts[DIVERGED])
    return parts


def _diverged_before(trial: Trial, why: str) -> Diverged:
    return Diverged(f"{trial.method_name}, which it starts from, diverged: {why}")


def _taught(teacher: Trial, parts: Mapping[str, Any], execution: Execution) -> np.ndarray:
    """The labels that a trained teacher gives to all training images of its data set: (N,) int64.  Computed once."""
    images = data.load(teacher.dataset, execution.data).train_images
    kept = None
    if execution.trained:
        kept = _labels_path(Current(execution.data).trained_path(execution.trained, teacher))
        with contextlib.suppress(FileNotFoundError, checkpoints.Refused, KeyError):  # else they are computed again
            known = checkpoints.read(kept, {"file": kept.name})["labels"]
            if len(known) == len(images):
                return np.asarray(known.numpy())
    method, seen, _ = assemble(teacher, execution)
    try:
        with checkpoints.fitting():
            for name, part in stateful(method).items():
                part.load_state_dict(parts[name])
    except checkpoints.Refused as error:
        raise Unusable(teacher, execution, error) from error
    device = seen.images.device
    still, size = torch.Generator(device), task.PART  # the view `none` draws nothing
    found = []
    for start in range(0, len(images), size):
        part = torch.from_numpy(np.array(images[start : start + size])).to(device)
        found.append(method.predict(seen.views["none"](part, still)).argmax(-1).cpu())
    labels = torch.cat(found)
    if kept:
        checkpoints.write(kept, {"labels": labels}, {"file": kept.name})
    return labels.numpy()


def run(
    trial: Trial,
    execution: Execution = Execution(),
    state: Mapping[str, Any] | None = None,
    tell: Callable[[Mapping[str, Any]], None] = lambda facts: None,
) -> Iterator[Row]:
    """Train and evaluate; one `Row` per epoch.  With an earlier row's snapshot as `state`, go on exactly from there.

    `tell` hears of the facts of `Row` as soon as they are known, those of the draw before there is a network, so that
    an attempt that comes to no row has them, too.

    Raises `Diverged` where losses, weights or predictions are no longer finite, `lnl.data.DataError` for missing or
    unfit data, and `lnl.storage.checkpoints.Refused` for a state that is not of this trial as it would be drawn now.
    """
    seen, truth = draw(trial, execution)
    tell(truth.facts)
    method = build(trial, execution, seen)
    parts = stateful(method)
    learners = [part for part in parts.values() if isinstance(part, learner.Learner)]
    facts = {
        **truth.facts,
        "parameters": sum(tensor.numel() for one in learners for tensor in one.parameters),
        "init_hash": digest(*(one.parameters[p] for one in learners for p in one.part("backbone"))),
    }
    tell(facts)
    if not _weights_are_finite(parts):
        raise data.Unfit("The weights that training starts from are no finite numbers: give others.")
    done, before = 0, 0.0
    drawn = {name: value for name, value in facts.items() if name.endswith("_hash")}
    if state is not None:
        with checkpoints.fitting():
            if other := [name for name, value in drawn.items() if state["drawn"][name] != value]:
                raise checkpoints.Refused(f"it was trained with another {other[0]}")
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
            done, before = int(state["epoch"]), float(state["seconds"])
    began = time.perf_counter()
    for epoch in range(done, trial.total_epochs):
        with _divergence(epoch + 1, method, truth.test_images):
            metrics = {("train", name): value for name, value in _trained_epoch(method, parts, epoch).items()}
            metrics |= evaluate(method, seen, truth, last=epoch + 1 == trial.total_epochs)
            inside, arrays = diagnose(method, seen, truth)
            metrics |= inside
            if execution.embeddings and epoch + 1 in _moments(trial.total_epochs):
                arrays |= embed(method, truth, execution.embeddings)
        seconds = before + time.perf_counter() - began

        def snapshot(epoch: int = epoch, seconds: float = seconds) -> dict[str, Any]:
            return {
                "epoch": epoch + 1,
                "seconds": seconds,
                "drawn": drawn,
                "parts": {name: part.state_dict() for name, part in parts.items()},
            }

        step = max((one.done for one in learners), default=0)
        arrays = {key: array.detach().float().cpu() for key, array in arrays.items()}
        yield Row(epoch + 1, step, seconds, metrics, facts, arrays, snapshot)


def _trained_epoch(method: Any, parts: Mapping[str, Any], epoch: int) -> dict[str, float]:
    """Train for one epoch; its scalars.  Raises `Diverged`."""
    scalars = {name: float(value) for name, value in method.train_epoch(epoch).items()}
    broken = [name for name, value in scalars.items() if name.startswith("loss") and not math.isfinite(value)]
    if broken:
        raise Diverged(f"{', '.join(broken)} was no finite number in epoch {epoch + 1}: lower the learning rate.")
    if not _weights_are_finite(parts):  # no loss has seen the last step
        raise Diverged(f"Weights were no finite numbers after epoch {epoch + 1}: lower the learning rate.")
    return scalars
