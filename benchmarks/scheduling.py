"""What does a trial cost beyond its training, against a bare Ray Tune loop of the same size?

Both run the same trials (one step of cross-entropy on digits) on one Ray in one process, in turn; ours also takes the
lease, writes two parquet files and reads the plan.  Prints medians over the rounds and their ratio.

    python benchmarks/scheduling.py [--trials 100 --rounds 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from lnl import runner
from lnl.study import Study
from lnl.trial import Execution, Trial, parse, run

import ray  # isort: skip  (after the runner, which sets Ray's environment)
from ray import tune  # isort: skip


class Silent:
    """A progress display that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def bare(trials: list[Trial], folder: str) -> float:
    def train(config: dict[str, Any]) -> None:
        for row in run(parse(config["trial"]), Execution()):
            tune.report({"epoch": row.epoch, "accuracy": row.metrics["test", "accuracy"]})

    began = time.perf_counter()
    tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
    return time.perf_counter() - began


def ours(study: Study, folder: str) -> float:
    began = time.perf_counter()
    outcome = runner.run_plan(study.plan(), runner.Settings(storage=Path(folder)), Silent())
    assert all(status.state == "done" for status in outcome.statuses), outcome
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1)
    study = Study(name="overhead", question="What does a trial cost?", base=base, replicates=options.trials)
    began = time.perf_counter()
    for trial in study.trials()[:20]:
        list(run(trial))
    training = (time.perf_counter() - began) / 20
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    times: dict[str, list[float]] = {"bare Ray Tune loop": [], "lnl": []}
    with tempfile.TemporaryDirectory() as folder:
        bare(study.trials()[:4], f"{folder}/warm-up")
        for number in range(options.rounds):
            times["bare Ray Tune loop"].append(bare(study.trials(), f"{folder}/bare-{number}"))
            times["lnl"].append(ours(study, f"{folder}/ours-{number}"))
    ray.shutdown()
    each = {name: 1000 * median(values) / options.trials for name, values in times.items()}
    print(
        f"{options.trials} trials, {options.rounds} rounds in turn; one alone, without Ray: {1000 * training:.0f} ms\n"
    )
    print("| per trial, two at a time | ms | ratio |\n|---|---|---|")
    for name, milliseconds in each.items():
        print(f"| {name} | {milliseconds:.0f} | {milliseconds / each['bare Ray Tune loop']:.2f} |")


if __name__ == "__main__":
    main()
