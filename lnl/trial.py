"""One trial: its configuration (frozen, validated, hashed) and `run`, a generator of one row per epoch.

Everything in `Trial` is identity: it may change the result, and it is hashed into the trial's id.  Everything in
`Execution` is not: where and how fast the trial runs never changes its id.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional

from lnl import checkpoints, data, graph, learner, methods, networks, noise, task
from lnl.declaring import declared, sentence
from lnl.files import printable
from lnl.provenance import Current
from lnl.results import Place, StorageError, Store, canonical, short_hash
from lnl.streams import Streams, digest
from lnl.task import Noise, Validation

__all__ = ["Diverged", "Execution", "Noise", "Row", "Trial", "Validation", "run"]

METHOD = ("method", "method.name")
NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07  # of the features' evaluation in the last epoch
HISTOGRAM_BINS, EMBEDDING_COMPONENTS = 40, 50  # of the arrays for figures
DIVERGED = "diverged"  # the only entry of the file of a trained prerequisite that diverged: why, in words


if TYPE_CHECKING:

    class MethodConfig:
        """For type checkers: what a trial's method may be given as, and what it is read as."""

        def __get__(self, trial: object, kind: type | None = None) -> BaseModel: ...
        def __set__(self, trial: object, value: str | Mapping[str, Any] | BaseModel) -> None: ...

else:  # a name, or {"name": …, field: value}
    MethodConfig = Annotated[SerializeAsAny[BaseModel], BeforeValidator(methods.configure)]


@declared
class Trial(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One configuration × one replicate."""

    method: MethodConfig
    dataset: str = "cifar10"
    network: str = "wide_resnet28_2"
    weights: str | None = None  # the backbone's before training: imagenet, or the path of a state dict
    resize: Annotated[int, Field(ge=8)] | None = None  # pixels: images become so large before they enter the backbone
    # Fields of another trial, whose trained backbone this one starts from, such as {"method": "simclr", "epochs": 200};
    # what is not said is as here.  Noise is none where that method uses no labels.
    init_from: dict[str, Any] | None = None
    labels: Annotated[int, Field(ge=2)] | None = None  # labelled training images, all classes together; None: all
    unlabelled_ratio: Annotated[float, Field(gt=0)] | None = (
        None  # unlabelled images per labelled one; None: all that are left
    )
    noise: Noise = Noise()
    validation: Validation = Validation()
    probe: Annotated[int, Field(ge=0)] = 0  # trusted images, for methods that use them
    epochs: Annotated[int, Field(ge=1)] = 100
    steps: Annotated[int, Field(ge=1)] | None = None  # optimizer steps an epoch; None: one pass over the larger part
    precision: learner.Precision = "float32"
    replicate: Annotated[int, Field(ge=0)] = 0

    @field_validator("network")
    @classmethod
    def _known_network(cls, name: str) -> str:
        if name not in networks.names():
            raise ValueError(f"there is no network '{name}': choose one of {', '.join(networks.names())}")
        return name

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        kind, colon, _ = name.partition(":")
        if kind + colon not in [known.removesuffix("PATH") for known in data.names()]:
            raise ValueError(f"there is no data set '{name}': choose one of {', '.join(data.names())}")
        return name

    @field_validator("dataset", "weights")
    @classmethod
    def _storable(cls, name: str | None) -> str | None:
        if name is not None and printable(name) != name:
            raise ValueError(
                f"the name '{printable(name)}' is not UTF-8, as results are: rename the file or its folder"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Trial:
        if self.init_from is not None and self.weights is not None:
            raise ValueError("init_from and weights both say where the backbone starts: give one of them")
        if self.init_from is not None and not {"method", "method.name"} & self.init_from.keys():
            raise ValueError("init_from needs a method, such as {'method': 'simclr', 'epochs': 200}")
        before = self.prerequisites  # refuses unknown fields of prerequisites, too
        if teacher := before.get("teacher"):
            self._check_teacher(teacher)
        if source := before.get("initialisation"):
            self._check_initialisation(source)
        return self

    def _check_teacher(self, teacher: Trial) -> None:
        if self.labels is not None and teacher.labels is not None and self.labels <= teacher.labels:
            raise ValueError(
                f"the {self.labels} labelled images are among the {teacher.labels} that the teacher of the noise was "
                "trained on, whose labels it repeats: ask for more labels, or give the teacher fewer"
            )

    def _check_initialisation(self, source: Trial) -> None:
        """Raise `ValueError` where it does not fit, or has seen of the images what this trial may not."""
        if (source.network, source.resize) != (self.network, self.resize):
            raise ValueError(
                f"init_from trains {source.network}, which cannot start {self.network}: choose one network"
            )
        same = ["validation", "probe"]
        if "labels" in methods.load(source.method_name).USES:
            same += ["labels", "noise"]  # else it could know right labels of images that are wrongly labelled here
        said = {key.partition(".")[0] for key in self.init_from or ()}
        for name in same if source.dataset == self.dataset else []:
            if name in said and (name == "noise" or getattr(source, name) != getattr(self, name)):
                raise ValueError(
                    f"init_from has another {name} than the trial that starts from it: leave init_from.{name} out, "
                    "so that both see the same images and labels"
                )

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def prerequisites(self) -> dict[str, Trial]:
        """Trials that are trained before this one: its `initialisation`, the `teacher` of its semantic noise."""
        found = {}
        fresh: dict[str, Any] = {"init_from": None, "weights": None}
        again = {"replicate": self.replicate}
        if self.init_from is not None:
            method = self.init_from.get("method", self.init_from.get("method.name"))
            uses = methods.load(methods.configure(method).name).USES  # type: ignore[attr-defined]
            silent = {} if "labels" in uses else {"noise": asdict(Noise())}
            found["initialisation"] = self.override({**fresh, **silent, **self.init_from, **again})
        if self.noise.teacher is not None:
            fresh |= {"noise": asdict(Noise()), "method": "supervised", "unlabelled_ratio": None}
            found["teacher"] = self.override({**fresh, **self.noise.teacher, **again})
        if len(found) == 2 and found["initialisation"].noise == self.noise:  # one teacher for both
            whole = found["teacher"].model_dump(mode="json", exclude={"replicate"})
            found["initialisation"] = found["initialisation"].model_copy(
                update={"noise": Noise("semantic", teacher=whole)}
            )
        return found

    @property
    def method_name(self) -> str:
        """Which file of `lnl/methods/` runs it; every `Config` has it as its field `name`."""
        return str(self.method.name)  # type: ignore[attr-defined]

    @property
    def id(self) -> str:
        """Hash of what differs from the method's defaults: a new field with a default moves no id."""
        return short_hash(canonical(self.identity()))

    def identity(self) -> dict[str, Any]:
        default = Trial(method=methods.configure(self.method_name))
        said = self.model_dump(mode="json")
        before = {name: trial.identity() for name, trial in self.prerequisites.items()}
        if before:  # they are what counts, not the fields in which they were said to differ
            said = {**said, "init_from": None, "noise": {**said["noise"], "teacher": None}, "prerequisites": before}
        mine = _difference(said, default.model_dump(mode="json"))
        return {**mine, "method": {"name": self.method_name, **mine.get("method", {})}}

    def override(self, changes: Mapping[str, Any]) -> Trial:
        """A copy with dotted fields changed: {"noise.rate": 0.4, "method.temperature": 0.1}.

        A new `method` starts from that method's own defaults; `method.*` keys apply after it.  Raises `ValueError`
        with one sentence for unknown keys and impossible values.
        """
        settings = self.model_dump(mode="json")
        for key, value in sorted(changes.items(), key=lambda item: item[0] not in METHOD):
            if key in METHOD and isinstance(value, str):
                settings["method"] = {"name": value}
                continue
            *parents, last = key.split(".")
            place = settings
            for parent in parents:
                if not isinstance(place.get(parent), dict):
                    place[parent] = {}
                place = place[parent]
            place[last] = copy.deepcopy(value)  # a later key may reach into it, and it belongs to the caller
        return parse(settings)

    @property
    def total_epochs(self) -> int:
        """Epochs of the run: pre-training epochs come on top."""
        return self.epochs + getattr(self.method, "pretrain_epochs", 0)


def parse(settings: Mapping[str, Any]) -> Trial:
    """A trial from plain data.  Raises `ValueError` with one sentence."""
    try:
        return Trial.model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError(sentence(error, Trial, settings)) from None


def _difference(mine: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mine.items():
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            if inner := _difference(value, default[key]):
                found[key] = inner
        elif key not in default or value != default[key]:
            found[key] = value
    return found


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


class Diverged(RuntimeError):
    """The method's own numbers are no longer finite, in losses, weights or predictions: an outcome, not an accident."""


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


def stateful(method: Any) -> dict[str, Any]:
    """The parts of a method that a snapshot stores."""
    return {name: part for name, part in vars(method).items() if hasattr(part, "load_state_dict")}


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
    unfit data, and `lnl.checkpoints.Refused` for a state that is not of this trial as it would be drawn now.
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


def _weights_are_finite(parts: Mapping[str, Any]) -> bool:
    """Parameters and statistics of all networks, averages and others; the device is waited for once."""
    modules = [
        module
        for part in parts.values()
        for module in (part.networks if isinstance(part, learner.Learner) else [part])
        if isinstance(module, nn.Module)
    ]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@contextlib.contextmanager
def _divergence(epoch: int, method: Any, images: Tensor) -> Iterator[None]:
    """Raise as `Diverged` what goes wrong in here because the method's own numbers are no longer finite.

    A library raises what it likes when it is handed NaN, so the kind of error tells nothing: it is divergence where
    weights, features or predictions are not finite, and where the arithmetic itself was found to break down.  With
    finite numbers an error is the code's, and stays what it is.
    """
    try:
        yield
    except (Diverged, data.DataError, StorageError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # accidents; and of an accelerator that broke nothing can be asked
    except Exception as error:
        arithmetic = isinstance(error, FloatingPointError | torch.linalg.LinAlgError)
        if not arithmetic and _weights_are_finite(stateful(method)) and _outputs_are_finite(method, images):
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Diverged(f"Training broke down in epoch {epoch} ({what}): lower the learning rate.") from error


def _outputs_are_finite(method: Any, images: Tensor) -> bool:
    """Finite weights may be so large that what they make of images is not.  What cannot be asked tells nothing."""
    for call in (method.features, method.predict):
        with contextlib.suppress(Exception):
            if not call(images).isfinite().all():
                return False
    return True


@torch.no_grad()
def evaluate(method: Any, seen: task.Task, truth: task.Truth, *, last: bool) -> dict[tuple[str, str], float]:
    """Accuracies as fractions.  What uses true labels of training images stands under `oracle`: for diagnosis only.

    In the last epoch also the features: neighbours among the labelled images vote with their given labels
    (`test/neighbour_accuracy`) and with their true ones (`oracle/neighbour_accuracy`).  Raises FloatingPointError where
    probabilities are not finite.
    """
    found: dict[tuple[str, str], float] = {}
    for split, images, labels in (
        ("test", truth.test_images, truth.test_labels),
        ("validation", truth.validation_images, truth.validation_labels),
    ):
        if len(labels):
            probabilities = _finite(method.predict(images))
            found[split, "accuracy"] = _share(probabilities.argmax(-1) == labels)
            likelihood = probabilities.gather(-1, labels[:, None]).clamp(min=1e-12)
            found[split, "cross_entropy"] = float(-likelihood.log().mean())
    index = seen.labelled
    given, true = seen.labels[index], truth.labels[index]
    guessed = _finite(seen.over(index, method.predict)).argmax(-1)
    found["train", "accuracy"] = _share(guessed == given)
    found["oracle", "accuracy"] = _share(guessed == true)
    wrong = given != true
    if wrong.any():
        found["oracle", "memorised"] = _share(guessed[wrong] == given[wrong])
    if last:
        bank, queries = seen.over(index, method.features), method.features(truth.test_images)
        k = min(NEIGHBOURS, len(index))
        for split, labels in (("test", given), ("oracle", true)):
            votes = graph.neighbour_votes(bank, labels, queries, k, NEIGHBOUR_TEMPERATURE, seen.classes)
            found[split, "neighbour_accuracy"] = _share(_finite(votes).argmax(-1) == truth.test_labels)
    return found


def _finite(probabilities: Tensor) -> Tensor:
    """The same.  Of NaN the first class would be the most probable, and accuracy its share."""
    if not probabilities.isfinite().all():
        raise FloatingPointError("class probabilities are no finite numbers")
    return probabilities


Arrays = dict[tuple[str, str], Tensor]


@torch.no_grad()
def diagnose(method: Any, seen: task.Task, truth: task.Truth) -> tuple[dict[tuple[str, str], float], Arrays]:
    """What the method believes of the training labels, compared with the truth; of several networks the mean.

    Metrics: precision and recall of the images trained on as right, AUC of its clean probability (ties count half),
    accuracy of refined and of pseudo-labels, mean absolute error of an estimated transition matrix, and how far the
    components of a mixture lie apart (in their root-mean-square deviation).  Arrays: histograms of clean and of wrong
    labels, the mixture, the transition matrix.
    """
    if not hasattr(method, "beliefs"):
        return {}, {}
    beliefs = method.beliefs()
    given, true = seen.labels[seen.labelled], truth.labels[seen.labelled]
    clean = given == true
    found: dict[tuple[str, str], float] = {}
    arrays: Arrays = {}
    if beliefs.selected is not None:
        chosen, known = _by_network(beliefs.selected)
        right = (chosen * clean).sum(-1)
        found["train", "selected"] = float((chosen.sum(-1) / known.sum(-1).clamp(min=1)).mean())
        found["oracle", "selection_precision"] = float((right / chosen.sum(-1)).mean())
        found["oracle", "selection_recall"] = float((right / (known & clean).sum(-1)).mean())
    if beliefs.clean is not None:
        scores = [_auc(one, clean) for one in beliefs.clean.reshape(-1, len(clean))]
        found["oracle", "selection_auc"] = sum(scores) / len(scores)
    for name, labels, index in (
        ("refined_accuracy", beliefs.labels, seen.labelled),
        ("pseudo_label_accuracy", beliefs.pseudo_labels, seen.unlabelled),
    ):
        if labels is not None and (known := labels.isfinite().all(-1) & (truth.labels[index] >= 0)).any():
            found["oracle", name] = _share((labels.argmax(-1) == truth.labels[index])[known])
    if beliefs.transition is not None:
        realised = noise.transition_matrix(true.cpu(), given.cpu(), seen.classes)
        found["oracle", "transition_error"] = float((beliefs.transition.cpu() - realised).abs().mean())
        arrays["train", "transition"] = beliefs.transition
    if beliefs.mixture is not None:
        mean, deviation = beliefs.mixture[..., 1], beliefs.mixture[..., 2]
        apart = (mean[..., 1] - mean[..., 0]) / deviation.square().mean(-1).sqrt()
        found["train", "mixture_separation"] = float(apart.mean())
        arrays["train", "mixture"] = beliefs.mixture.reshape(-1, 2, 3)
    for name in ("loss", "clean", "coefficient"):
        if (values := getattr(beliefs, name)) is not None and (known := values[values.isfinite()]).numel():
            most = max(1.0, float(known.max()))  # losses that the method does not bring to [0, 1] itself
            kinds = [_histogram(values[..., kind], most) for kind in (clean, ~clean)]
            arrays["oracle", f"{name}_histogram"] = torch.stack(kinds)
    return found, arrays


def _by_network(values: Tensor) -> tuple[Tensor, Tensor]:
    """(…, L) with NaN -> (networks, L) without, and where it was known."""
    values = values.reshape(-1, values.shape[-1])
    known = values.isfinite()
    return torch.where(known, values, 0.0), known


def _auc(scores: Tensor, clean: Tensor) -> float:
    """Area under the ROC curve of (L,) scores for (L,) clean; NaN where one of the two kinds has no known score."""
    from sklearn.metrics import roc_auc_score  # plans need no scikit-learn, which takes a second

    known = scores.isfinite()
    scores, clean = scores[known].cpu(), clean[known].cpu()
    if clean.all() or not clean.any():
        return math.nan
    return float(roc_auc_score(clean.numpy(), scores.numpy()))


def _histogram(values: Tensor, most: float) -> Tensor:
    """Counts of the known values over [0, most]."""
    known = values[values.isfinite()].float().cpu()
    return torch.histc(known.clamp(0, most), bins=HISTOGRAM_BINS, min=0, max=most)


def _moments(epochs: int) -> set[int]:
    """Five epochs to look at: the first, the last, and the quarters between."""
    return {1, *(max(1, round(epochs * quarter / 4)) for quarter in (1, 2, 3, 4))}


@torch.no_grad()
def embed(method: Any, truth: task.Truth, count: int) -> Arrays:
    """Features of `count` test images, the first ones of each class in turn, as at most 50 principal components."""
    labels = truth.test_labels
    rank = torch.zeros_like(labels)
    for k in labels.unique():
        rank[labels == k] = torch.arange(int((labels == k).sum()), device=labels.device)
    index = torch.argsort(rank, stable=True)[:count]
    features = functional.normalize(method.features(truth.test_images[index]).double(), dim=-1)
    left, scale, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    components = (left * scale)[:, :EMBEDDING_COMPONENTS]
    return {("test", "embeddings"): components, ("test", "embedding_labels"): labels[index]}


def _share(matches: Tensor) -> float:
    return float(matches.double().mean())
