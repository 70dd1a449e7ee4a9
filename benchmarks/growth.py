"""How do time and memory grow with images, vectors, classes, planned trials, replicates and reports?

Each size is measured in a process of its own: CPU seconds of the work alone, without imports and without making the
data, and the largest memory beyond the largest until then, which was that of making the data.  The exponent is the
slope between the two largest sizes in a log-log figure: 1 is linear growth.  Prints a Markdown table and draws the
figure.

    python benchmarks/growth.py [--only images,reports --figure benchmarks/growth.png]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from timing import largest_memory, machine

from lnl import data
from lnl.training.task import Noise
from lnl.trial.config import Trial, Validation
from lnl.trial.run import Execution, run

WIDTH = 64  # of the vectors
TEST = 1_000
Work = Callable[[], object]


def written(folder: Path, inputs: np.ndarray, labels: np.ndarray) -> str:
    """The name of a data set of these, of which the first stand in the test set."""
    path = folder / "data.npz"
    kind = "features" if inputs.ndim == 2 else "npz"
    np.savez(path, x_train=inputs, y_train=labels, x_test=1 - inputs[:TEST], y_test=labels[:TEST])
    return f"{kind}:{path}"


def training(folder: Path, inputs: np.ndarray, classes: int, network: str) -> Work:
    """Two epochs of DivideMix, of which one divides."""
    labels = np.arange(len(inputs)) % classes
    trial = Trial(
        method={"name": "dividemix", "warm_up": 1, "batch_size": 256}, dataset=written(folder, inputs, labels),
        network=network, noise=Noise("symmetric", 0.4), validation=Validation(images=0), epochs=2,
    )  # fmt: skip
    execution = Execution("cpu", 1, folder)
    data.load(trial.dataset, folder)  # leaves it in its cache
    return lambda: list(run(trial, execution))


def of_images(folder: Path, size: int) -> Work:
    return training(folder, np.random.default_rng(0).integers(0, 256, (size, 8, 8), np.uint8), 10, "small_convnet")


def of_vectors(folder: Path, size: int) -> Work:
    return training(folder, np.random.default_rng(0).random((size, WIDTH), np.float32), 10, "mlp")


def of_classes(folder: Path, size: int) -> Work:
    return training(folder, np.random.default_rng(0).random((20_000, WIDTH), np.float32), size, "mlp")


def store(folder: Path, trials: int, epochs: int) -> None:
    """Make a results folder of as many finished trials of two arms."""
    import loading

    loading.ARMS = 2
    loading.grow(folder, trials, epochs)


def of_trials(folder: Path, size: int) -> Work:
    from planning import prepare

    from lnl.cli.main import main

    study, storage = prepare(folder, size, done=True)
    return lambda: main(["status", str(study), "--storage", str(storage)])


def of_replicates(folder: Path, size: int) -> Work:
    from analysis.notebook import load

    store(folder, 2 * size, 2)
    load(folder, "large")  # leaves a copy of all rows

    def compare() -> None:
        study = load(folder, "large")
        study.contrasts()
        study.table_contrasts()
        study.table_rules()

    return compare


def of_reports(folder: Path, size: int) -> Work:
    from analysis.notebook import load

    store(folder, 100, size)
    return lambda: load(folder, "large").epochs(["test/accuracy"])


class Kind(NamedTuple):
    """What grows, to which sizes, and the work that is measured."""

    sizes: tuple[int, ...]
    work: Callable[[Path, int], Work]
    what: str


KINDS = {
    "images": Kind((1_000, 5_000, 20_000, 50_000), of_images, "DivideMix on 8 × 8 images, small_convnet"),
    "vectors": Kind((1_000, 10_000, 100_000, 1_000_000), of_vectors, f"DivideMix on vectors of {WIDTH}, mlp"),
    "classes": Kind((10, 100, 1_000), of_classes, "DivideMix on 20,000 vectors, mlp"),
    "trials": Kind((100, 1_000, 10_000), of_trials, "`lnl status`, all trials done"),
    "replicates": Kind((10, 100, 1_000), of_replicates, "verdicts and tables of two arms"),
    "reports": Kind((30, 300, 3_000), of_reports, "one metric of all epochs of 100 trials"),
}


class Cost(NamedTuple):
    seconds: float
    memory: float  # MB


def measure(kind: str, size: int) -> Cost:
    """In this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = KINDS[kind].work(Path(folder), size)
        before = largest_memory()
        began = time.process_time()
        work()
        return Cost(time.process_time() - began, max(largest_memory() - before, 0.1))


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Slope between the two largest sizes in logarithms: small ones pay for what does not grow."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def draw(costs: dict[str, list[Cost]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, field, unit in zip(axes, Cost._fields, ("CPU seconds", "MB beyond the start"), strict=True):
        for name, measured in costs.items():
            values = [getattr(cost, field) for cost in measured]
            label = f"{name}: {exponent(KINDS[name].sizes, values):.2f}"
            axis.loglog(KINDS[name].sizes, values, marker="o", label=label)
        axis.set(xlabel="number", ylabel=unit)
        axis.legend(title="exponent at the end", frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--size", help=argparse.SUPPRESS)  # of a process: KIND and its size
    options = parser.parse_args()
    if options.size:
        kind, size = options.size.split()
        print("\n" + json.dumps(measure(kind, int(size))))
        return
    if unknown := [name for name in options.only.split(",") if name not in KINDS]:
        parser.error(f"--only {','.join(unknown)} is unknown: choose from {', '.join(KINDS)}")
    print(f"one thread, {machine(torch.device('cpu'))}\n")
    print("| what grows | work | sizes | CPU seconds | exponent | MB | exponent |\n|--|--|--|--|--:|--|--:|")
    costs: dict[str, list[Cost]] = {}
    for name in options.only.split(","):
        sizes, _, what = KINDS[name]
        costs[name] = []
        for size in sizes:
            command = [sys.executable, __file__, "--size", f"{name} {size}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            costs[name].append(Cost(*json.loads(done.stdout.splitlines()[-1])))
        seconds, memory = (list(values) for values in zip(*costs[name], strict=True))
        cells = (
            name,
            what,
            ", ".join(f"{size:,}" for size in sizes),
            ", ".join(f"{value:.2f}" for value in seconds),
            f"{exponent(sizes, seconds):.2f}",
            ", ".join(f"{value:.0f}" for value in memory),
            f"{exponent(sizes, memory):.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    draw(costs, options.figure)


if __name__ == "__main__":
    main()
