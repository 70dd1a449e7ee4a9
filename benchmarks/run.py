"""The goals for speed in one table: the work, the reference, the ratio, the goal, and the share of it that is reached.

Every ratio is of things measured in turn in this run.  Rows are measured one after the other and printed as they come;
`--only` chooses some.  References that are no package are checkouts that you give (see `official.py`); without them
their rows are left out, with a word.  On an idle machine, all rows take an hour and a half.

    python benchmarks/run.py [--only driver,study --rounds 3 --dividemix PATH --mixmatch PATH --fixmatch PATH --simclr]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import epoch
import neighbours
import official
import peak
import scheduling
import study
import torch
from timing import machine

from lnl.data import DataError

ON_CIFAR = ("supervised", "mixmatch", "dividemix")
DIVIDEMIX_GOAL, OTHERS_GOAL = (1.4, 2.7), (1.3, 2.4)  # in float32 and in bfloat16


class Row(NamedTuple):
    """One line of the table."""

    work: str
    reference: str
    ratios: Sequence[float]  # one for each round
    goal: float
    at_least: bool = True

    def __str__(self) -> str:
        ratio = median(self.ratios)
        reached = ratio / self.goal if self.at_least else self.goal / ratio
        sign = "≥" if self.at_least else "≤"
        cells = (
            self.work,
            self.reference,
            f"{ratio:,.2f}",
            f"{min(self.ratios):,.2f} to {max(self.ratios):,.2f}",
            f"{sign} {self.goal:,}",
            f"{reached:.0%}",
        )
        return f"| {' | '.join(cells)} |"


def references(options: argparse.Namespace) -> Iterator[Row]:
    precisions = ("float32", "bfloat16") if options.bfloat16 else ("float32",)
    asked = official.given(options)
    for method in official.REFERENCES:
        if method not in asked:
            print(f"No row for {method}: --{method} was not given.", file=sys.stderr)
            continue
        rounds = official.compare(method, asked[method], precisions, options.rounds, options.images, options.data)
        goals = DIVIDEMIX_GOAL if method == "dividemix" else OTHERS_GOAL
        for precision, goal in zip(precisions, goals, strict=False):
            ratios = [seconds["reference"] / seconds[precision] for seconds in rounds]
            work = f"{method}, an epoch, {official.NETWORKS[method]}, {precision}"
            yield Row(work, "official or most used code", ratios, goal)


def share_outside(options: argparse.Namespace) -> Iterator[Row]:
    """Of those that spend the most there: of all methods on digits, at 32 × 32 of `ON_CIFAR`, as all take an hour."""
    on_cifar = epoch.Setting("cifar10", "wide_resnet28_2", data=options.data, labels=128, epochs=1)
    for setting, names, goal in (
        (epoch.Setting(data=options.data), epoch.TRAINING, 0.25),
        (on_cifar, ON_CIFAR, 0.08),
    ):
        try:
            shares = {name: epoch.epoch(name, setting).share_outside for name in names}
        except DataError as error:
            print(f"No row for {setting.dataset}: {error}", file=sys.stderr)
            continue
        for name in sorted(shares, key=lambda name: -shares[name])[:3]:
            work = f"{name}, outside the network's passes: {setting.dataset}, {setting.network}"
            yield Row(work, "its epoch", [shares[name]], goal, at_least=False)


def of_study(options: argparse.Namespace) -> Iterator[Row]:
    rounds = [study.measure(2) for _ in range(options.rounds)]
    yield Row("`lnl run`, some of `make study`", "plain processes", [a / b for a, b, _ in rounds], 1.05, at_least=False)
    yield Row("two trials on two cores", "one on one core", [2 * one / two for _, two, one in rounds], 1.9)


def matrix_peak(options: argparse.Namespace) -> Iterator[Row]:
    speeds = peak.speeds("wide_resnet28_10", torch.device("cpu"), "float32", 32, options.rounds)
    yield Row("WRN-28-10, forward and backward", "matrix peak", [speed.passes / speed.peak for speed in speeds], 0.6)


def driver(options: argparse.Namespace) -> Iterator[Row]:
    trials, epochs = 128, 40
    many_reports = scheduling.compare(trials, epochs, options.rounds)["lnl"]
    reports = [scheduling.reports_a_second(trials, epochs, cost) for cost in many_reports]
    yield Row("driver: reports a second of a core", "a number", reports, 1000)
    many_trials = scheduling.compare(1000, 1, options.rounds)
    pairs = zip(many_trials["lnl"], many_trials["bare Ray Tune loop"], strict=True)
    ratios = [ours.memory / bare.memory for ours, bare in pairs]
    yield Row("driver: memory, 1,000 trials", "bare Ray Tune", ratios, 1.1, at_least=False)


def graph(options: argparse.Namespace) -> Iterator[Row]:
    rounds = [neighbours.measure(50_000, 128, 8192, 3) for _ in range(options.rounds)]
    search, iteration = zip(*rounds, strict=True)
    yield Row("propagation, an iteration", "SciPy, CSR", [t["SciPy, CSR"] / t["ours"] for t in iteration], 1)
    yield Row("neighbours, 50,000 × 128", "faiss, flat", [t["faiss, flat"] / t["ours"] for t in search], 0.8)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "references": references,
    "share": share_outside,
    "study": of_study,
    "peak": matrix_peak,
    "driver": driver,
    "graph": graph,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true", help="measure the references' rows in bfloat16, too")
    official.add_references(parser)
    options = parser.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in PARTS]:
        parser.error(f"--only {','.join(unknown)} is unknown: choose from {', '.join(PARTS)}")
    print(f"{options.rounds} rounds in turn, {machine(torch.device('cpu'))}\n")
    print("| work | reference | ratio | lowest to highest | goal | reached |\n|--|--|--:|--:|--:|--:|")
    for name in options.only.split(","):
        for row in PARTS[name](options):
            print(row, flush=True)


if __name__ == "__main__":
    main()
