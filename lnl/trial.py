"""One trial: its configuration (frozen, validated, hashed) and `run`, a generator of one row per epoch.

Everything in `Trial` is identity: it may change the result, and it is hashed into the trial's id.  Everything in
`Execution` is not: where and how fast the trial runs never changes its id.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

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
from torch import Tensor
from torch.nn import functional

from lnl import data, graph, learner, methods, networks, noise, task
from lnl.files import open_file, printable, read_file
from lnl.results import Place, StorageError, canonical, short_hash, write_atomically
from lnl.streams import Streams, digest
from lnl.task import Noise, Validation

__all__ = ["Diverged", "Execution", "Noise", "Row", "Trial", "Validation", "code_hash", "run"]

_METHOD = ("method", "method.name")
NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07  # of the features' evaluation in the last epoch
ROOT = Path(__file__).parents[1]  # of the sources that `code_hash` reads
HISTOGRAM_BINS, EMBEDDING_COMPONENTS = 40, 50  # of the arrays for figures


class Trial(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One configuration × one replicate."""

    method: Annotated[
        SerializeAsAny[BaseModel], BeforeValidator(methods.configure)
    ]  # a name, or {"name": …, field: value}
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
        for key, value in sorted(changes.items(), key=lambda item: item[0] not in _METHOD):
            if key in _METHOD and isinstance(value, str):
                settings["method"] = {"name": value}
                continue
            *parents, last = key.split(".")
            place = settings
            for parent in parents:
                if not isinstance(place.get(parent), dict):
                    place[parent] = {}
                place = place[parent]
            place[last] = value
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
        raise ValueError(_sentence(error, settings)) from None


def _sentence(error: ValidationError, settings: Mapping[str, Any]) -> str:
    """The first of pydantic's complaints, with the nearest field where the key is unknown."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *parents, last = [str(part) for part in first["loc"]]
        known = _fields(parents, settings)
        close = difflib.get_close_matches(last, known, n=1)
        return f"Unknown key '{place}': " + (
            f"did you mean '{'.'.join([*parents, close[0]])}'?" if close else f"there are {', '.join(known)}."
        )
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("value_error", "missing") else f", not {first['input']!r}"
    sentence = f"{place or 'trial'}: {message}{given}"
    return sentence if sentence[-1] in ".?" else f"{sentence}."


def _fields(parents: list[str], settings: Mapping[str, Any]) -> list[str]:
    """Names of the fields at a place such as [], ["noise"], ["method", "optimizer"]."""
    kind: Any = Trial
    for parent in parents:
        if parent == "method" and kind is Trial:
            kind = methods.load(
                settings["method"] if isinstance(settings["method"], str) else settings["method"]["name"]
            ).Config
        else:
            kind = {"noise": Noise, "validation": Validation, "optimizer": learner.Optimizer}.get(parent, Trial)
    return sorted(getattr(kind, "model_fields", None) or kind.__pydantic_fields__)


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
    """The method itself produced a loss that is not a number: an outcome, not an accident."""


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
    if execution.threads:
        torch.set_num_threads(execution.threads)
    device = execution.torch_device()
    module = methods.load(trial.method_name)
    before = {name: _trained(prerequisite, execution) for name, prerequisite in trial.prerequisites.items()}
    if execution.threads:
        torch.set_num_threads(execution.threads)
    seen, truth = task.prepare(
        trial.dataset,
        Streams(trial.replicate),
        device,
        execution.data,
        labels=trial.labels,
        unlabelled_ratio=trial.unlabelled_ratio,
        probe=trial.probe,
        validation=trial.validation,
        noise_settings=trial.noise,
        epochs=trial.epochs,
        steps=trial.steps,
        taught=_taught(trial.prerequisites["teacher"], before["teacher"], execution) if "teacher" in before else None,
        probe_apart="probe" in module.USES,
    )
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
        learner.trained_backbone(before["initialisation"]) if "initialisation" in before else None,
    )
    try:
        return module.Method(trial.method, seen, network, streams), seen, truth
    except ValueError as error:  # what a method asks of its trial: epochs enough, a probe, …
        raise data.Unfit(str(error)) from error


def stateful(method: Any) -> dict[str, Any]:
    """The parts of a method that a snapshot stores."""
    return {name: part for name, part in vars(method).items() if hasattr(part, "load_state_dict")}


def trained_path(folder: Place, trial: Trial) -> Place:
    """Where the state of a trained prerequisite is kept: one file per configuration and code."""
    return folder / f"{trial.id}-{trial_code_hash(trial)}.pt"


def load_state(path: Place) -> Any:
    """What `torch.save` wrote there, on the CPU: tensors and plain data, never code."""
    return torch.load(io.BytesIO(read_file(path)), map_location="cpu", weights_only=True)


def _trained(trial: Trial, execution: Execution) -> dict[str, Any]:
    """The parts of a prerequisite after its last epoch.  Raises `lnl.data.DataError` where they cannot be had."""
    if execution.trained is None:
        *_, row = run(trial, execution)
        parts: dict[str, Any] = row.snapshot()["parts"]
        return parts
    path = trained_path(execution.trained, trial)
    try:
        parts = load_state(path)
    except StorageError:
        raise
    except Exception as error:
        raise data.DataError(
            f"The trained prerequisite {trial.id} ({trial.method_name}) cannot be read from {path} "
            f"({type(error).__name__}): remove that file if it is there, and run the study again."
        ) from error
    return parts


def _taught(teacher: Trial, parts: Mapping[str, Any], execution: Execution) -> np.ndarray:
    """The labels that a trained teacher gives to all training images of its data set: (N,) int64.  Computed once."""
    kept = trained_path(execution.trained, teacher).with_suffix(".labels.npy") if execution.trained else None
    if kept:
        with contextlib.suppress(ValueError, EOFError, OSError):  # a damaged file is computed again
            labels: np.ndarray = np.load(io.BytesIO(read_file(kept)))
            return labels
    method, seen, _ = assemble(teacher, execution)
    for name, part in stateful(method).items():
        part.load_state_dict(parts[name])
    images = data.load(teacher.dataset, execution.data).train_images
    device = seen.images.device
    still, size = torch.Generator(device), task.PART  # the view `none` draws nothing
    found = []
    for start in range(0, len(images), size):
        part = torch.from_numpy(np.array(images[start : start + size])).to(device)
        found.append(method.predict(seen.views["none"](part, still)).argmax(-1).cpu())
    labels = torch.cat(found).numpy()
    if kept:
        write_atomically(kept, lambda temporary: _save_array(temporary, labels))
    return labels


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # numpy would append .npy to the temporary name
        np.save(file, array)


def run(trial: Trial, execution: Execution = Execution(), state: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """Train and evaluate; one `Row` per epoch.  With an earlier row's snapshot as `state`, go on exactly from there.

    Raises `Diverged` where the loss is no longer finite, `lnl.data.DataError` for missing or unfit data.
    """
    method, seen, truth = assemble(trial, execution)
    parts = stateful(method)
    learners = [part for part in parts.values() if isinstance(part, learner.Learner)]
    facts = {
        **truth.facts,
        "parameters": sum(tensor.numel() for one in learners for tensor in one.parameters),
        "init_hash": digest(*(one.parameters[p] for one in learners for p in one.part("backbone"))),
    }
    done, before = 0, 0.0
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        done, before = state["epoch"], state["seconds"]
    began = time.perf_counter()
    for epoch in range(done, trial.total_epochs):
        try:
            scalars = {name: float(value) for name, value in method.train_epoch(epoch).items()}
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            raise Diverged(f"Training broke down in epoch {epoch + 1} ({error}): lower the learning rate.") from error
        broken = [name for name, value in scalars.items() if name.startswith("loss") and not math.isfinite(value)]
        if broken:
            raise Diverged(f"{', '.join(broken)} was no finite number in epoch {epoch + 1}: lower the learning rate.")
        metrics = {("train", name): value for name, value in scalars.items()}
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
                "parts": {name: part.state_dict() for name, part in parts.items()},
            }

        step = max((one.done for one in learners), default=0)
        arrays = {key: array.detach().float().cpu() for key, array in arrays.items()}
        yield Row(epoch + 1, step, seconds, metrics, facts, arrays, snapshot)


@torch.no_grad()
def evaluate(method: Any, seen: task.Task, truth: task.Truth, *, last: bool) -> dict[tuple[str, str], float]:
    """Accuracies as fractions.  What uses true labels of training images stands under `oracle`: for diagnosis only.

    In the last epoch also the features: neighbours among the labelled images vote with their given labels
    (`test/neighbour_accuracy`) and with their true ones (`oracle/neighbour_accuracy`).
    """
    found: dict[tuple[str, str], float] = {}
    for split, images, labels in (
        ("test", truth.test_images, truth.test_labels),
        ("validation", truth.validation_images, truth.validation_labels),
    ):
        if len(labels):
            probabilities = method.predict(images)
            found[split, "accuracy"] = _share(probabilities.argmax(-1) == labels)
            likelihood = probabilities.gather(-1, labels[:, None]).clamp(min=1e-12)
            found[split, "cross_entropy"] = float(-likelihood.log().mean())
    index = seen.labelled
    given, true = seen.labels[index], truth.labels[index]
    guessed = seen.over(index, method.predict).argmax(-1)
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
            found[split, "neighbour_accuracy"] = _share(votes.argmax(-1) == truth.test_labels)
    return found


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


# ----------------------------------------------------------------------------------------------------- code identity


def trial_code_hash(trial: Trial) -> str:
    """Hash of the source behind a trial's result: its method's, and that of its prerequisites."""
    before = [trial_code_hash(prerequisite) for prerequisite in trial.prerequisites.values()]
    if trial.weights is not None:
        path = Path(trial.weights)
        with contextlib.suppress(OSError):  # of a file that cannot be read the trial tells, where it wants the weights
            before.append(_file_hash(path, path.stat().st_mtime_ns))  # another file under the same name: other weights
    mine = code_hash(trial.method_name)
    return short_hash("".join([mine, *before])) if before else mine


@cache
def code_hash(method: str) -> str:
    """Hash of the source that a trial of `method` runs: its file, this one, and all that they import from lnl.

    Comments, docstrings, formatting and what a search may try do not count.
    """
    waiting, seen = [f"lnl.methods.{method}", __name__], {}
    while waiting:
        name = waiting.pop()
        if name in seen or name in ("lnl", "lnl.methods", "lnl.results", "lnl.space"):
            continue
        if path := _source(name):
            seen[name], imports = _read(path, path.stat().st_mtime_ns)
            waiting += imports
    return short_hash("".join(seen[name] for name in sorted(seen)))


@cache
def _file_hash(path: Path, changed: int) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _read(path: Path, changed: int) -> tuple[str, list[str]]:
    """What counts of a source file, and the modules of lnl that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return ast.dump(_without_docstrings(_without_spaces(tree))), sorted(_imports(tree))


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lnl.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lnl":
            found.add(node.module)
            found |= {name for alias in node.names if _source(name := f"{node.module}.{alias.name}")}
    return found


def _source(module: str) -> Path | None:
    """The file of a module of lnl, if there is one; `find_spec` would import what it lies in, and so torchvision."""
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _without_spaces(tree: ast.Module) -> ast.Module:
    """Without SEARCH, MIXMATCH_SEARCH and the like, and the import of their words."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and node.module == "lnl.space")
        and not (isinstance(node, ast.Assign | ast.AnnAssign) and _names_a_space(node))
    ]
    return tree


def _names_a_space(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return all(isinstance(target, ast.Name) and target.id.endswith("SEARCH") for target in targets)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
