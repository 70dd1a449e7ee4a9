"""`run`: train and evaluate one trial, as a generator of one row per epoch.

Everything in a `Trial` is identity: it may change the result, and it is hashed into the trial's id.  Everything in
`Execution` is not: where and how fast the trial runs never changes its id.  Prerequisites of a trial are read from
their files or, without a folder for these, run here first; hence they are in this file and not in one below it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from lnl import data, methods
from lnl.methods import Method
from lnl.storage import checkpoints
from lnl.storage.kept import Outputs
from lnl.storage.part_names import Kept
from lnl.storage.places import Place
from lnl.system import machine
from lnl.system.timing import Clock, phase
from lnl.training import learner
from lnl.training.draw import prepare
from lnl.training.images import held, in_parts
from lnl.training.state import State, Stateful, stateful_parts
from lnl.training.streams import Streams, digest
from lnl.training.task import Noise, Task, Truth, Validation
from lnl.trial import outputs
from lnl.trial.config import Trial
from lnl.trial.divergence import Diverged, errors_of_divergence, weights_are_finite
from lnl.trial.evaluation import Arrays, Metrics, diagnose, embed, embedding_epochs, evaluate
from lnl.trial.outputs import Trained
from lnl.trial.provenance import Current
from lnl.trial.trained import DIVERGED, labels_path

__all__ = ["Diverged", "Execution", "Noise", "Row", "Trial", "Validation", "run"]


@dataclass(frozen=True)
class Execution:
    """Where a trial runs.  Never part of its identity."""

    device: str = "auto"  # auto: cuda where there is one, else cpu
    threads: int | None = 1  # of the CPU, and processes that decode images on demand; None: torch's default, all CPUs
    data: Path | None = None  # folder of the data sets; None: lnl.data's default
    trained: Place | None = None  # folder of trained prerequisites; None: train them here, first
    embeddings: int = 0  # test images whose features are kept, before training and in the epochs of `embedding_epochs`

    def torch_device(self) -> torch.device:
        """The device of this machine that `device` names."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


class Snapshot(TypedDict):
    """All that is needed to go on from the end of an epoch exactly as if training had never stopped."""

    epoch: int  # that have been trained
    seconds: float  # of training and evaluation so far
    drawn: dict[str, object]  # the hashes of data, noise, split and initial weights
    parts: dict[str, State]  # the state of each stateful part of the method


@dataclass(frozen=True)
class Row:
    """What is known at the end of an epoch."""

    epoch: int  # counted from 1
    step: int  # optimizer steps so far
    seconds: float  # of training and evaluation so far
    metrics: Metrics
    facts: Mapping[str, object]  # what was realised: noise rate, transition matrix, hashes, number of parameters
    arrays: Arrays  # float32 on the CPU
    snapshot: Callable[[], Snapshot] = field(repr=False)  # valid until the generator is asked for the next row
    keep: Callable[[Collection[Kept]], Outputs] = field(repr=False)  # these of what is kept on request; likewise


def assemble(trial: Trial, execution: Execution) -> tuple[Method, Task, Truth]:
    """A trial's method before its first step, the task that it sees, and the truth that it does not see.

    Raises `lnl.data.DataError` where data are missing or do not fit, and `Diverged` where a prerequisite diverged.
    """
    seen, truth = draw(trial, execution)
    return build(trial, execution, seen), seen, truth


def draw(trial: Trial, execution: Execution) -> tuple[Task, Truth]:
    """The task that a trial's method sees, and the truth that it does not see.  Raises `lnl.data.DataError`."""
    _set_threads(execution)
    labels_of_teacher = None
    if teacher := trial.prerequisites.get("teacher"):
        try:
            labels_of_teacher = _labels_by(teacher, _trained_parts(teacher, execution), execution)
        except Diverged as error:  # not a result of this trial's method, which has not started
            raise data.DataError(f"The teacher of the noise gives no labels: {error}") from error
    return prepare(
        trial.dataset,
        Streams(trial.replicate),
        execution.torch_device(),
        execution.data,
        labels=trial.labels,
        labels_drawn=trial.labels_drawn,
        unlabelled_ratio=trial.unlabelled_ratio,
        probe=trial.probe,
        validation=trial.validation,
        noise_settings=trial.noise,
        epochs=trial.epochs,
        steps=trial.steps,
        semantic_labels=labels_of_teacher,
        probe_apart="probe" in methods.load(trial.method_name).USES,
        view_settings=trial.view_settings,
        workers=execution.threads or machine.cpus(),
    )


def _set_threads(execution: Execution) -> None:
    if execution.threads:
        torch.set_num_threads(execution.threads)


def build(trial: Trial, execution: Execution, seen: Task) -> Method:
    """The method before its first step.

    Raises `lnl.data.DataError` where the task does not suit the method, and `Diverged` where the prerequisite that its
    backbone is taken from diverged.
    """
    source = trial.prerequisites.get("initialisation")
    initial = _backbone(source, _trained_parts(source, execution), execution) if source else None
    _set_threads(execution)
    device = execution.torch_device()
    streams = Streams(trial.replicate, device)
    network = learner.NetworkBuilder(
        trial.network,
        tuple(seen.images.shape[1:]),
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
    except ValueError as error:  # a method's own condition on its trial: enough epochs, a probe, …
        raise data.Unfit(str(error)) from error


class Unusable(data.DataError):
    """The file of a trained prerequisite is missing or damaged, or its content does not fit."""

    def __init__(self, trial: Trial, execution: Execution, reason: Exception) -> None:
        self.trial, self.reason = trial.id, reason
        folder = execution.trained
        self.path = None if folder is None else Current(execution.data).trained_path(folder, trial)
        super().__init__(
            f"The trained prerequisite {trial.id} ({trial.method_name}) cannot be used from {self.path}, because "
            f"{reason}: run the study again, which trains it again."
        )


def _backbone(source: Trial, parts: Mapping[str, State], execution: Execution) -> dict[str, Tensor]:
    """The trained backbone among the parts of a prerequisite.  Raises `Unusable` where there is none."""
    try:
        with checkpoints.fitting():
            return learner.trained_backbone(parts)
    except checkpoints.Refused as error:
        raise Unusable(source, execution, error) from error


def _trained_parts(trial: Trial, execution: Execution) -> dict[str, State]:
    """The state of each part of a prerequisite after its last epoch, read from its file, or trained here.

    Raises `Unusable` where the file cannot be used, `Diverged` where the prerequisite diverged.
    """
    if execution.trained is None:
        try:
            *_, row = run(trial, execution)
        except Diverged as error:
            raise _diverged_before(trial, str(error)) from error
        return row.snapshot()["parts"]
    path = Current(execution.data).trained_path(execution.trained, trial)
    try:
        parts: dict[str, State] = checkpoints.read(path, {"file": path.name})
    except FileNotFoundError as error:
        raise Unusable(trial, execution, checkpoints.Refused("it is not there")) from error
    except checkpoints.Refused as error:
        raise Unusable(trial, execution, error) from error
    if DIVERGED in parts:
        raise _diverged_before(trial, str(parts[DIVERGED]))
    return parts


def _diverged_before(trial: Trial, reason: str) -> Diverged:
    return Diverged(f"{trial.method_name}, which it starts from, diverged: {reason}")


def _labels_by(teacher: Trial, parts: Mapping[str, State], execution: Execution) -> np.ndarray:
    """The labels that a trained teacher predicts for all training images of its data set: (N,) int64.

    They are kept in a file beside the teacher's state, so that they are computed once for all trials.
    """
    images = data.load(teacher.dataset, execution.data).train_images
    path = None
    if execution.trained:
        path = labels_path(Current(execution.data).trained_path(execution.trained, teacher))
        with contextlib.suppress(FileNotFoundError, checkpoints.Refused, KeyError):  # else they are computed again
            stored = checkpoints.read(path, {"file": path.name})["labels"]
            if len(stored) == len(images):
                return np.asarray(stored.numpy())
    method, seen, _ = assemble(teacher, execution)
    try:
        with checkpoints.fitting():
            _load(stateful_parts(method), parts)
    except checkpoints.Refused as error:
        raise Unusable(teacher, execution, error) from error
    device = seen.images.device
    generator = torch.Generator(device)  # the view `none` draws nothing from it
    everything = held(images, np.arange(len(images)), device, execution.threads or machine.cpus())
    labels = in_parts(everything, lambda part: method.predict(seen.views["none"](part, generator)).argmax(-1)).cpu()
    if path:
        checkpoints.write(path, {"labels": labels}, {"file": path.name})
    return labels.numpy()


def run(
    trial: Trial,
    execution: Execution = Execution(),
    state: Snapshot | None = None,
    tell: Callable[[Mapping[str, object]], None] = lambda facts: None,
    clock: Clock | None = None,
) -> Iterator[Row]:
    """Train and evaluate a trial: one `Row` per epoch.  From an earlier row's snapshot, `state`, go on exactly there.

    `tell` receives the facts of `Row` as soon as they are known, those of the draw before there is a network, so that
    they are also known of an attempt that fails before its first row.  `clock` is told where the time of epochs went.

    Raises `Diverged` where losses, weights or predictions are no longer finite, `lnl.data.DataError` for missing or
    unfit data, and `lnl.storage.checkpoints.Refused` for a state that is not of this trial as it would be drawn now.
    """
    yield from train(trial, execution, *draw(trial, execution), state, tell, clock)


def train(
    trial: Trial,
    execution: Execution,
    seen: Task,
    truth: Truth,
    state: Snapshot | None = None,
    tell: Callable[[Mapping[str, object]], None] = lambda facts: None,
    clock: Clock | None = None,
) -> Iterator[Row]:
    """As `run`, on what was drawn for the trial."""
    clock = clock or Clock()
    tell(truth.facts)
    method = build(trial, execution, seen)
    parts = stateful_parts(method)
    learners = [part for part in parts.values() if isinstance(part, learner.Learner)]
    facts = {
        **truth.facts,
        "parameters": sum(tensor.numel() for part in learners for tensor in part.parameters),
        "computed_in": learners[0].precision if learners else None,
        "init_hash": digest(*(part.parameters[p] for part in learners for p in part.part("backbone"))),
    }
    tell(facts)
    if not weights_are_finite(parts):
        raise data.Unfit("The weights that training starts from are no finite numbers: give others.")
    drawn = {name: value for name, value in facts.items() if name.endswith("_hash")}
    first_epoch, seconds_before = _restore(parts, drawn, state) if state is not None else (0, 0.0)
    began = time.perf_counter()
    for epoch in range(first_epoch, trial.total_epochs):
        with clock.running(), errors_of_divergence(epoch + 1, method, truth.test_images):
            metrics, arrays = _epoch(trial, execution, method, parts, seen, truth, epoch)
        seconds = seconds_before + time.perf_counter() - began
        step = max((part.done for part in learners), default=0)
        arrays = {key: array.detach().float().cpu() for key, array in arrays.items()}
        snapshot = partial(_snapshot, epoch + 1, seconds, drawn, parts)
        keep = partial(outputs.of, Trained(method, parts, seen, truth))
        yield Row(epoch + 1, step, seconds, metrics, facts, arrays, snapshot, keep)


def _snapshot(epoch: int, seconds: float, drawn: dict[str, object], parts: Mapping[str, Stateful]) -> Snapshot:
    states = {name: part.state_dict() for name, part in parts.items()}
    return {"epoch": epoch, "seconds": seconds, "drawn": drawn, "parts": states}


def _restore(parts: Mapping[str, Stateful], drawn: Mapping[str, object], state: Snapshot) -> tuple[int, float]:
    """Load a snapshot into a method's parts; returns the epochs and seconds that lie before it.

    Raises `Refused` where it comes from another draw or does not fit.
    """
    with checkpoints.fitting():
        if other := [name for name, value in drawn.items() if state["drawn"][name] != value]:
            raise checkpoints.Refused(f"it was trained with another {other[0]}")
        _load(parts, state["parts"])
        return int(state["epoch"]), float(state["seconds"])


def _load(parts: Mapping[str, Stateful], states: Mapping[str, State]) -> None:
    for name, part in parts.items():
        part.load_state_dict(states[name])


def _epoch(
    trial: Trial,
    execution: Execution,
    method: Method,
    parts: Mapping[str, Stateful],
    seen: Task,
    truth: Truth,
    epoch: int,
) -> tuple[Metrics, Arrays]:
    """Train for epoch `epoch`, counted from 0, and evaluate.  Raises `Diverged`."""
    before = embed(method, truth, execution.embeddings) if execution.embeddings and epoch == 0 else {}
    with phase("rest"):
        metrics: Metrics = {("train", name): value for name, value in _train_epoch(method, parts, epoch).items()}
    with phase("evaluation"):
        measured, arrays = evaluate(method, seen, truth, last=epoch + 1 == trial.total_epochs)
        diagnosis, of_figures = diagnose(method, seen, truth)
        metrics |= measured | diagnosis
        arrays |= of_figures
        if execution.embeddings and epoch + 1 in embedding_epochs(trial.total_epochs):
            arrays |= embed(method, truth, execution.embeddings)
    if before:
        arrays["test", "embeddings_before"] = before["test", "embeddings"]
    return metrics, arrays


def _train_epoch(method: Method, parts: Mapping[str, Stateful], epoch: int) -> dict[str, float]:
    """Train for one epoch; returns its scalars.  Raises `Diverged` where a loss or a weight is not finite."""
    scalars = {name: float(value) for name, value in method.train_epoch(epoch).items()}
    broken = [name for name, value in scalars.items() if name.startswith("loss") and not math.isfinite(value)]
    if broken:
        raise Diverged(f"{', '.join(broken)} was no finite number in epoch {epoch + 1}: lower the learning rate.")
    if not weights_are_finite(parts):  # the last step came after the last loss
        raise Diverged(f"Weights were no finite numbers after epoch {epoch + 1}: lower the learning rate.")
    return scalars
