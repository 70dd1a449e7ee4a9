"""What does a suggestion cost beyond its training, against plain Optuna with the same storage?

Both ask for and tell the same number of suggestions over two parameters, in turn, with random sampling: what is left is
the memory.  Ours also takes a lease and a lock, writes its parquet row, reads the trial's rows and keeps `--searches`
searches apart.  Training is left out; the rows of the trials are written before the clock starts.  Prints medians over
the rounds and their ratios.

    python benchmarks/searching.py [--suggestions 40 --rounds 3 --optuna postgresql://user@host/name]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import optuna

from lnl.search.optuna_objects import open_storage
from lnl.search.searches import Searches
from lnl.space import Uniform
from lnl.storage.store import Store
from lnl.study.parts import Search
from lnl.study.plan import Plan, Planned
from lnl.study.study import Study
from lnl.training.task import Noise, Validation
from lnl.trial.config import Trial
from lnl.trial.provenance import Current

SPACE = {"method.lambda_mixmatch": Uniform(0.1, 10, log=True), "method.temperature": Uniform(0.1, 1)}


def declared(searches: int, suggestions: int) -> Plan:
    base = Trial(
        method="robmix",
        dataset="digits",
        network="small_convnet",
        labels=50,
        noise=Noise("symmetric", 0.4),
        validation=Validation(images=200, labels="noisy"),
        epochs=1,
    )
    arms = {f"arm_{place}": {"method.views": 1 + place} for place in range(searches)}
    search = Search(suggestions=suggestions, space=SPACE, samplers=("random",))
    return Study(name="cost", question="?", base=base, arms=arms, replicates=1, search=search).plan()


def train(store: Store, plan: Plan, planned: Planned) -> float:
    """Write the trial's rows; returns the seconds that took."""
    began = time.perf_counter()
    key = {"trial": planned.id, "attempt": 1}
    row = {**key, "status": "ok", "epochs_done": 1, "seconds": 1.0, **Current().sources(planned.trial)._asdict()}
    accuracy = {**key, "epoch": 1, "step": 1, "split": "validation", "metric": "accuracy", "value": 0.5}
    store.write_attempt(plan.study, row, [accuracy])
    return time.perf_counter() - began


def ours(searches: int, suggestions: int, url: str | None) -> float:
    """Seconds a suggestion."""
    with tempfile.TemporaryDirectory() as folder:
        store, plan = Store(Path(folder)), declared(searches, suggestions)
        source = Searches(plan, store, url=url)
        began, training = time.perf_counter(), 0.0
        while planned := source.next(1):
            training += train(store, plan, planned)
            source.ended(planned.id, {"outcome": "done"})
        return (time.perf_counter() - began - training) / (searches * suggestions)


def plain(searches: int, suggestions: int, url: str | None) -> float:
    """Seconds a suggestion."""
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(url, Path(folder))
        studies = [
            optuna.create_study(
                storage=storage, study_name=f"{folder}/{place}", sampler=optuna.samplers.RandomSampler(seed=0)
            )
            for place in range(searches)
        ]
        began = time.perf_counter()
        for _ in range(suggestions):
            for study in studies:
                trial = study.ask()
                trial.suggest_float("method.lambda_mixmatch", 0.1, 10, log=True)
                trial.suggest_float("method.temperature", 0.1, 1)
                study.tell(trial, 0.5)
        return (time.perf_counter() - began) / (searches * suggestions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--suggestions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optuna", metavar="URL", help="a database to measure, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storages = {"journal": None, "sqlite": f"sqlite:///{folder}/optuna.db"}
        if options.optuna:
            storages[options.optuna.partition(":")[0]] = options.optuna
        print("| storage | searches | plain Optuna, ms | ours, ms | ratio |\n|---|--:|--:|--:|--:|")
        for name, url in storages.items():
            for searches in (1, 20):
                each = max(4, options.suggestions // searches)
                rounds = [(plain(searches, each, url), ours(searches, each, url)) for _ in range(options.rounds)]
                bare, full = (1000 * median(times) for times in zip(*rounds, strict=True))
                print(f"| {name} | {searches} | {bare:.0f} | {full:.0f} | {full / bare:.1f} |")


if __name__ == "__main__":
    main()
