"""What does a trial cost beyond its training, and the driver in memory, against a bare Ray Tune loop of the same size?

Both run the same quick trials (one step on ten tiny images), each in a process and on a Ray of its own, in turn; ours
also takes the lease, writes two parquet files and reads the plan.  Prints medians over the rounds and their ratios: of
wall time from the first trial to the last, of the driver's CPU time, and of its largest memory.  Trials of many epochs
report as often: what a core of the driver can take in a second is told, too.

    python benchmarks/scheduling.py [--trials 1000 --rounds 3 --epochs 1]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from timing import largest_memory

from lnl.study.study import Study
from lnl.trial.config import Trial, parse
from lnl.trial.run import Execution, run


class Silent:
    """A progress display that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def declare(folder: Path, trials: int, epochs: int) -> Study:
    """As many trials of a few milliseconds, on a data set of twenty images."""
    classes, path = np.arange(20) % 2, folder / "tiny.npz"
    images = np.zeros((20, 8, 8), np.uint8)
    images[:, 0, 0] = 255 * classes
    if not path.exists():
        np.savez(path, x_train=images, y_train=classes, x_test=images, y_test=classes, flip=False)
    base = Trial(method="supervised", dataset=f"npz:{path}", network="small_convnet", labels=10, epochs=epochs, steps=1)
    return Study(name="overhead", question="What does a trial cost?", base=base, replicates=trials)


def bare(study: Study, folder: Path) -> None:
    from ray import tune

    def train(config: dict[str, Any]) -> None:
        for row in run(parse(config["trial"]), Execution()):
            tune.report({"epoch": row.epoch, "accuracy": row.metrics["test", "accuracy"]})

    tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"trial": tune.grid_search([trial.model_dump(mode="json") for trial in study.trials()])},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()


def ours(study: Study, folder: Path) -> None:
    from lnl.execution import job, runner

    outcome = runner.run_plan(study.plan(), job.RunSettings(storage=folder), Silent())
    assert all(status.state == "done" for status in outcome.statuses), outcome


LOOPS = {"bare Ray Tune loop": bare, "lnl": ours}


class Cost(NamedTuple):
    """Of a loop: seconds from the first trial to the last, CPU seconds of the driver, and its largest memory in MB."""

    seconds: float
    cpu: float
    memory: float


def measure(name: str, folder: Path, trials: int, epochs: int) -> Cost:
    """Of one loop, in this process."""
    from lnl.execution import ray_environment

    ray_environment.prepare("local")  # before Ray is imported
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    study = declare(folder, trials, epochs)
    with tempfile.TemporaryDirectory() as results:
        bare(declare(folder, 2, epochs), Path(results, "warm-up"))
        began, used = time.perf_counter(), time.process_time()
        LOOPS[name](study, Path(results, "measured"))
        spent = time.perf_counter() - began, time.process_time() - used
    ray.shutdown()
    return Cost(*spent, largest_memory())


def compare(trials: int, epochs: int, rounds: int) -> dict[str, list[Cost]]:
    """The costs of each loop, one for each round, in turn and each in a process of its own."""
    costs: dict[str, list[Cost]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory() as folder:
        size = ["--folder", folder, "--trials", str(trials), "--epochs", str(epochs)]
        for _ in range(rounds):
            for name in LOOPS:
                command = [sys.executable, __file__, "--only", name, *size]
                done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
                costs[name].append(Cost(*json.loads(done.stdout.splitlines()[-1])))
    return costs


def training(epochs: int) -> float:
    """Seconds that one trial trains, without Ray."""
    with tempfile.TemporaryDirectory() as folder:
        trials = declare(Path(folder), 20, epochs).trials()
        list(run(trials[0]))
        began = time.perf_counter()
        for trial in trials:
            list(run(trial))
        return (time.perf_counter() - began) / len(trials)


def reports_a_second(trials: int, epochs: int, cost: Cost) -> float:
    """What a core of the driver takes: a report for each epoch, and one more that tells the outcome."""
    return trials * (epochs + 1) / cost.cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of a trial, each of which it reports")
    parser.add_argument("--only", choices=LOOPS, help=argparse.SUPPRESS)  # of a process: this loop, in --folder
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.folder, options.trials, options.epochs)))
        return
    costs = compare(options.trials, options.epochs, options.rounds)
    print(
        f"{options.trials:,} trials of {options.epochs} epochs, {options.rounds} rounds in turn, {os.cpu_count()} CPU "
        f"cores, load {os.getloadavg()[0]:.0f}; one trial alone, without Ray: {1000 * training(options.epochs):.0f} ms"
    )
    print("\n| | a trial, ms | ratio | driver's CPU, ms | ratio | reports a second of it | its memory, MB | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    medians = {name: Cost(*(median(values) for values in zip(*rounds, strict=True))) for name, rounds in costs.items()}
    first = medians["bare Ray Tune loop"]
    for name, cost in medians.items():
        cells = (
            name,
            f"{1000 * cost.seconds / options.trials:.0f}",
            f"{cost.seconds / first.seconds:.2f}",
            f"{1000 * cost.cpu / options.trials:.1f}",
            f"{cost.cpu / first.cpu:.2f}",
            f"{reports_a_second(options.trials, options.epochs, cost):,.0f}",
            f"{cost.memory:.0f}",
            f"{cost.memory / first.memory:.2f}",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
