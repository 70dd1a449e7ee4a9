"""Which share of an epoch, its evaluation included, is spent outside the network's passes?

Outside are views, drawing batches, mixing, selection, optimizer, average, and what evaluation does beside its passes.
Inside are forward and backward passes, virtual steps, and passes without a gradient by which a method guesses or
selects, or is evaluated.  The last column counts evaluation's passes as outside, too.

Timed are passes over `--labels` images and as many without a label; what training takes is told for as many images as
the data set has, beside one evaluation.  Medians over epochs, after one of warm-up.  Prints one Markdown table.

    python benchmarks/epoch.py [--network wide_resnet28_2 --dataset cifar10 --device cuda --precision bfloat16]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from timing import machine

from lnl import data, methods
from lnl.system import memory
from lnl.system.timing import PHASES, Clock, Phase
from lnl.training.precision import Precision
from lnl.training.task import Noise
from lnl.trial.config import Trial
from lnl.trial.run import Execution, run

NETWORK: tuple[Phase, ...] = ("forward", "backward", "meta", "inference")
BATCH = 64
TRAINING = [name for name in methods.names() if name not in ("label_errors", "label_propagation")]  # a network
AT_ONCE: dict[
    str, dict[str, float]
] = {  # the parts that methods come to later in training, which are what an epoch costs
    "dividemix": {"warm_up": 1},
    "dynamic_bootstrapping": {"bootstrap_from": 0.0},
    "selfmatch": {"pretrain_epochs": 1},
    "co_teaching": {"ramp": 1},
}


class Evaluated(Clock):
    """A clock that tells apart evaluation's passes, and on a GPU waits for it at the end of each phase."""

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.waits, self.passes_of_evaluation = waits, 0.0
        self._names: list[Phase] = []

    def enter(self, name: Phase) -> None:
        super().enter(name)
        self._names.append(name)

    def leave(self) -> None:
        super().leave()
        self._names.pop()

    def _count(self) -> None:
        if self.waits:
            torch.cuda.synchronize()
        before = self._since
        super()._count()
        if "evaluation" in self._names and self._names[-1] == "inference":
            self.passes_of_evaluation += self._since - before


class Medians(NamedTuple):
    """Seconds of each phase of an epoch, and of evaluation's passes."""

    phases: dict[Phase, float]
    passes_of_evaluation: float


def measure(trial: Trial, execution: Execution) -> Medians:
    """Medians over epochs but the first and the last, which looks at more than others."""
    memory.keep_freed()  # as workers do
    clock = Evaluated(waits=execution.torch_device().type == "cuda")
    before, passes_before, epochs, passes = dict(clock.seconds), 0.0, [], []
    for _ in run(trial, execution, clock=clock):
        epochs.append({name: clock.seconds[name] - before[name] for name in PHASES})
        passes.append(clock.passes_of_evaluation - passes_before)
        before, passes_before = dict(clock.seconds), clock.passes_of_evaluation
    return Medians({name: median(epoch[name] for epoch in epochs[1:-1]) for name in PHASES}, median(passes[1:-1]))


class Epoch(NamedTuple):
    """Seconds of an epoch over all images of a data set: its training, the part of it outside the network's passes,
    its evaluation, and the part of that outside passes."""

    training: float
    outside: float
    evaluation: float
    evaluation_outside: float

    @property
    def share_outside(self) -> float:
        """Of the epoch with its evaluation."""
        return (self.outside + self.evaluation_outside) / (self.training + self.evaluation)

    @property
    def share_with_evaluation(self) -> float:
        """The same, with evaluation's passes counted as outside."""
        return (self.outside + self.evaluation) / (self.training + self.evaluation)


class Setting(NamedTuple):
    """On what all methods are measured."""

    dataset: str = "digits"
    network: str = "small_convnet"
    device: str = "cpu"
    precision: Precision = "float32"
    data: Path | None = None
    labels: int = 640  # that a measured epoch sees
    epochs: int = 5  # of which the medians are told


def fields_of(name: str) -> dict[str, str | float]:
    """A method with the batch of all, at the part of training that an epoch's cost is asked for."""
    batch = {"batch_size": BATCH} if "batch_size" in methods.load(name).Config.model_fields else {}
    return {"name": name, **batch, **AT_ONCE.get(name, {})}


def epoch(name: str, setting: Setting) -> Epoch:
    """Of one method."""
    trial = Trial(
        method=fields_of(name), dataset=setting.dataset, network=setting.network,
        noise=Noise("symmetric", 0.4), labels=setting.labels, unlabelled_ratio=1, probe=100,
        epochs=setting.epochs + 2, precision=setting.precision,
    )  # fmt: skip
    phases, passes = measure(trial, Execution(setting.device, 1, setting.data))
    evaluation = phases.pop("evaluation")
    images = len(data.load(setting.dataset, setting.data).train_images)
    scale = images / setting.labels / (2 if "unlabelled" in methods.load(name).USES else 1)
    training = scale * sum(phases.values())
    outside = training - scale * sum(phases[phase] for phase in NETWORK)
    return Epoch(training, outside, evaluation, evaluation - passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting()
    parser.add_argument("--dataset", default=default.dataset)
    parser.add_argument("--network", default=default.network)
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--precision", default=default.precision, choices=("float32", "bfloat16"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--labels", type=int, default=default.labels)
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--methods", nargs="+", default=TRAINING, choices=TRAINING, metavar="METHOD")
    options = vars(parser.parse_args())
    names, setting = options.pop("methods"), Setting(**options)
    about = (setting.dataset, setting.network, setting.precision, f"batch {BATCH}", "one thread")
    print(f"{', '.join(about)}, {machine(torch.device(setting.device))}\n")
    print(
        "| method | training, s | outside passes | evaluation, s | outside passes | an epoch, s | outside passes | ¹ |"
    )
    print("|--|--:|--:|--:|--:|--:|--:|--:|")
    for name in names:
        training, outside, evaluation, evaluation_outside = measured = epoch(name, setting)
        cells = (
            name,
            f"{training:.2f}",
            f"{outside / training:.0%}",
            f"{evaluation:.3f}",
            f"{evaluation_outside / evaluation:.0%}",
            f"{training + evaluation:.2f}",
            f"{measured.share_outside:.0%}",
            f"{measured.share_with_evaluation:.0%}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n¹ With evaluation's passes counted as outside.")


if __name__ == "__main__":
    main()
