"""One trial: its configuration (frozen, validated, hashed) and `run`, a generator of one row per epoch.

Everything in `Trial` is identity: it may change the result, and it is hashed into the trial's id.  Everything in
`Execution` is not: where and how fast the trial runs never changes its id.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError, field_validator
from torch import Tensor

from lnl import data, graph, learner, methods, networks, task
from lnl.results import canonical
from lnl.streams import Streams, digest
from lnl.task import Noise, Validation

__all__ = ["Diverged", "Execution", "Noise", "Row", "Trial", "Validation", "code_hash", "run"]

_METHOD = ("method", "method.name")
NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07  # of the features' evaluation in the last epoch


class Trial(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One configuration × one replicate."""

    method: Annotated[
        SerializeAsAny[BaseModel], BeforeValidator(methods.configure)
    ]  # a name, or {"name": …, field: value}
    dataset: str = "cifar10"
    network: str = "wide_resnet28_2"
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

    @property
    def method_name(self) -> str:
        """Which file of `lnl/methods/` runs it; every `Config` has it as its field `name`."""
        return str(self.method.name)  # type: ignore[attr-defined]

    @property
    def id(self) -> str:
        """Hash of what differs from the method's defaults: a new field with a default moves no id."""
        return hashlib.sha256(canonical(self.identity()).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        default = Trial(method=methods.configure(self.method_name))
        mine = _difference(self.model_dump(mode="json"), default.model_dump(mode="json"))
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
    snapshot: Callable[[], dict[str, Any]] = field(repr=False)


def assemble(trial: Trial, execution: Execution) -> tuple[Any, task.Task, task.Truth]:
    """The method before its first step, what it sees, and what it does not.  Raises `lnl.data.DataError`."""
    if execution.threads:
        torch.set_num_threads(execution.threads)
    device = execution.torch_device()
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
    )
    _, channels, size, _ = seen.images.shape
    streams = Streams(trial.replicate, device)
    network = learner.NetworkBuilder(trial.network, channels, size, device, trial.precision, streams)
    module = methods.load(trial.method_name)
    return module.Method(trial.method, seen, network, streams), seen, truth


def run(trial: Trial, execution: Execution = Execution(), state: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """Train and evaluate; one `Row` per epoch.  With an earlier row's snapshot as `state`, go on exactly from there.

    Raises `Diverged` where the loss is no longer finite, `lnl.data.DataError` for missing or unfit data.
    """
    method, seen, truth = assemble(trial, execution)
    parts = {name: part for name, part in vars(method).items() if hasattr(part, "load_state_dict")}
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
        scalars = {name: float(value) for name, value in method.train_epoch(epoch).items()}
        broken = [name for name, value in scalars.items() if name.startswith("loss") and not math.isfinite(value)]
        if broken:
            raise Diverged(f"{', '.join(broken)} was no finite number in epoch {epoch + 1}: lower the learning rate.")
        metrics = {("train", name): value for name, value in scalars.items()}
        metrics |= evaluate(method, seen, truth, last=epoch + 1 == trial.total_epochs)
        seconds = before + time.perf_counter() - began

        def snapshot(epoch: int = epoch, seconds: float = seconds) -> dict[str, Any]:
            return {
                "epoch": epoch + 1,
                "seconds": seconds,
                "parts": {name: part.state_dict() for name, part in parts.items()},
            }

        yield Row(epoch + 1, max((one.done for one in learners), default=0), seconds, metrics, facts, snapshot)


@torch.no_grad()
def evaluate(method: Any, seen: task.Task, truth: task.Truth, *, last: bool) -> dict[tuple[str, str], float]:
    """Accuracies as fractions; `train/accuracy_clean` and `train/memorised` use true labels: oracles, for diagnosis.

    In the last epoch also the features: neighbours among the labelled images vote with their given labels
    (`neighbour_accuracy`) and, an oracle, with their true ones (`neighbour_accuracy_clean`).
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
    still = torch.Generator(index.device)  # the view `none` draws nothing

    def in_parts(call: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([call(seen.view(part, "none", still)) for part in index.split(learner.EVALUATION_BATCH)])

    guessed = in_parts(method.predict).argmax(-1)
    found["train", "accuracy"] = _share(guessed == given)
    found["train", "accuracy_clean"] = _share(guessed == true)
    wrong = given != true
    if wrong.any():
        found["train", "memorised"] = _share(guessed[wrong] == given[wrong])
    if last:
        bank, queries = in_parts(method.features), method.features(truth.test_images)
        k = min(NEIGHBOURS, len(index))
        for name, labels in (("neighbour_accuracy", given), ("neighbour_accuracy_clean", true)):
            votes = graph.neighbour_votes(bank, labels, queries, k, NEIGHBOUR_TEMPERATURE, seen.classes)
            found["test", name] = _share(votes.argmax(-1) == truth.test_labels)
    return found


def _share(matches: Tensor) -> float:
    return float(matches.double().mean())


# ----------------------------------------------------------------------------------------------------- code identity


@cache
def code_hash(method: str) -> str:
    """Hash of the source that a trial of `method` runs: its file, this one, and all that they import from lnl.

    Comments, docstrings and formatting do not count.
    """
    waiting, seen = [f"lnl.methods.{method}", __name__], {}
    while waiting:
        name = waiting.pop()
        if name in seen or name in ("lnl", "lnl.methods", "lnl.results"):
            continue
        spec = find_spec(name)
        if spec is None or not spec.origin:
            continue
        tree = ast.parse(Path(spec.origin).read_text())
        seen[name] = ast.dump(_without_docstrings(tree))
        waiting += sorted(_imports(tree))
    return hashlib.sha256("".join(seen[name] for name in sorted(seen)).encode()).hexdigest()[:12]


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lnl.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lnl":
            found.add(node.module)
            found |= {name for alias in node.names if _is_module(name := f"{node.module}.{alias.name}")}
    return found


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
