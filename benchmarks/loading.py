"""How long does it take to read the results of a large study, beside what else reads parquet?

Writes a folder of one file per attempt by the store's own writers, then reads it in turn: the whole trial table, and
one metric of all epochs.  `analysis.results` also joins the rows with the plan; it is timed after a first call, which
left a copy of all rows.  Unlike DuckDB, and pandas and pyarrow by default, the store verifies the checksum of every
page, and names a damaged file instead of failing on it.
Prints medians over the rounds and their ratios.

    python benchmarks/loading.py [--trials 10000 --epochs 300 --rounds 3 --folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from analysis.results import read_results
from lnl.storage.outcomes import selection_rules
from lnl.storage.places import canonical, now, short_hash
from lnl.storage.schema import EPOCHS, TRIALS
from lnl.storage.store import Store
from lnl.storage.tables import write_rows
from lnl.training.task import Noise
from lnl.trial.config import Trial

STUDY, ARMS = "large", 20
METRICS = [("train", name) for name in ("loss", "accuracy", "learning_rate", "gradient_norm")]
METRICS += [("validation", "accuracy"), ("test", "accuracy")]


def write(root: Path, epochs: int, number: int) -> None:
    """One finished trial.  Without flushing it to disk: that would take longer than all the rest."""
    store, trial, draw = Store(root), short_hash(str(number)), np.random.default_rng(number)
    config = Trial(method="robmix", dataset="cifar10", labels=4000, noise=Noise("symmetric", 0.4), epochs=epochs)
    values, key = draw.random((epochs, len(METRICS))), {"trial": trial, "attempt": 1}
    curves = [
        {**key, "epoch": e, "step": 1024 * e, "split": split, "metric": name, "value": value, "seconds": 30.0 * e}
        for e, row in enumerate(values.tolist(), 1)
        for (split, name), value in zip(METRICS, row, strict=True)
    ]
    drawn = ("noise_hash", "split_hash", "unlabelled_hash", "init_hash")  # by replicate, so that arms are paired
    row = {
        **{name: "some text" for name, kind in zip(TRIALS.names, TRIALS.types, strict=True) if kind == "string"},
        **{name: short_hash(f"{name} {number // ARMS}") for name in drawn},
        **{name: short_hash(name) for name in ("data_hash", "code_hash")},
        **key,
        **selection_rules(values[:, -1], values[:, -2]),
        "arm": f"arm_{number % ARMS}",
        "setting": "{}",
        "replicate": number // ARMS,
        "config": config.model_dump_json(),
        "transition": canonical(draw.random((10, 10)).round(4).tolist()),
        "search": None,
        "status": "ok",
        "failure_class": None,
        "failure_message": None,
        "epochs_done": epochs,
        "seconds": 30.0 * epochs,
        "started_at": now(),
        "ended_at": now(),
    }
    write_rows(store.attempt_path("epochs", STUDY, trial, 1), EPOCHS, curves)
    write_rows(store.attempt_path("trials", STUDY, trial, 1), TRIALS, [row])


def grow(root: Path, trials: int, epochs: int) -> None:
    """A complete study below `root`, with its plan; what is there already stays."""
    there = {path.stem for path in root.rglob("trials/*/*.parquet")}
    numbers = [number for number in range(trials) if f"{short_hash(str(number))}-1" not in there]
    with ProcessPoolExecutor(initializer=_without_flushing) as pool:
        list(pool.map(partial(write, root, epochs), numbers, chunksize=20))
    planned = [
        {"trial": short_hash(str(number)), "arm": f"arm_{number % ARMS}", "setting": {}, "replicate": number // ARMS}
        for number in range(trials)
    ]
    about = {"study": STUDY, "preset": "some text"}
    arms = {f"arm_{place}": {} for place in range(ARMS)}
    contrast = {"arm": "arm_1", "against": "arm_0", "smallest_effect": 0.01}
    plan = {**about, "arms": arms, "replicates": trials // ARMS, "contrasts": [contrast], "trials": planned}
    Store(root).write_plan({**about, "plan_hash": "plan", "submitted_at": now(), "plan": json.dumps(plan)})


def _without_flushing() -> None:
    os.fsync = lambda descriptor: None


def one_by_one(folder: Path, **options: Any) -> pd.DataFrame:
    parts = [pq.read_table(path, partitioning=None, **options) for path in sorted(folder.glob("*.parquet"))]
    return pd.concat([part.to_pandas() for part in parts], ignore_index=True)


def seconds(read: Callable[[], Any]) -> float:
    began = time.perf_counter()
    assert len(read())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="write the results here and keep them")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="duckdb")
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        grow(root, options.trials, options.epochs)
        trials, epochs = (root / table / f"study={STUDY}" for table in ("trials", "epochs"))
        test_accuracy = [("split", "=", "test"), ("metric", "=", "accuracy")]
        needed = ["trial", "attempt", "epoch", "split", "metric", "value"]
        study, duck = read_results(root, STUDY), duckdb.connect()
        where = "where split = 'test' and metric = 'accuracy'"
        cases: dict[str, dict[str, Callable[[], Any]]] = {
            "the trial table": {
                "analysis.results": lambda: read_results(root, STUDY).trials,
                "the store, every file opened": lambda: Store(root).read("trials", STUDY, check=True)[0],
                "DuckDB": lambda: duck.sql(f"select * from '{trials}/*.parquet'").to_arrow_table().to_pandas(),
                "pandas.read_parquet of the folder": lambda: pd.read_parquet(trials),
                "file by file": lambda: one_by_one(trials),
            },
            "one metric of all epochs": {
                "Study.epochs": lambda: study.epochs(["test/accuracy"]),
                "the store alone": lambda: Store(root).read("epochs", STUDY, needed, test_accuracy)[0],
                "DuckDB": lambda: (
                    duck.sql(f"select {', '.join(needed)} from '{epochs}/*.parquet' {where}")
                    .to_arrow_table()
                    .to_pandas()
                ),
                "pandas.read_parquet of the folder": lambda: pd.read_parquet(
                    epochs, columns=needed, filters=test_accuracy
                ),
                "file by file": lambda: one_by_one(epochs, columns=needed, filters=test_accuracy),
            },
        }
        print(f"{options.trials:,} trials × {options.epochs} epochs × {len(METRICS)} metrics, {os.cpu_count()} cores")
        for what, readers in cases.items():
            rounds = [[seconds(read) for read in readers.values()] for _ in range(options.rounds)]
            medians = [median(times) for times in zip(*rounds, strict=True)]
            print(f"\n| {what} | seconds | ratio |\n|---|--:|--:|")
            for name, taken in zip(readers, medians, strict=True):
                print(f"| {name} | {taken:.2f} | {taken / medians[0]:.2f} |")


if __name__ == "__main__":
    main()
