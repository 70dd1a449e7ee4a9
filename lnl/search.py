"""Optuna in every arm of a study: suggestions, their memory, equal budgets, the plan that confirms the winners.

The only module that imports Optuna.  A *suggestion* is one point of a search, trained on one or more replicates that
belong to searches alone.  Optuna's storage is the memory of a search while it runs (a journal file in the results
folder, or a database for drivers on several machines); the record of results is the table `suggestions`, whose row is
written before Optuna is told, and from which a lost storage is made again.  What makes this safe to kill at any time:

- A suggestion that is being evaluated has a lease, like a trial.  One that is open without a living holder is taken
  over by the next driver, with the same values, and its trials go on from their checkpoints.
- Asking and taking over happen under one lock, so that two drivers never hold the same suggestion.
- A suggestion that failed by accident does not count; the next run suggests its values again.  One that diverged
  counts as chance accuracy.

Samplers have Optuna's defaults and the seed `seed_of(cell)`, so that one driver that evaluates one suggestion at a
time gets what plain Optuna gives; every further driver of a search (a second one, or the next after a kill) has the
next seed of its own, because a sampler that starts again would repeat its draws.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from lnl.results import (
    Lease,
    StorageError,
    Store,
    canonical,
    claim,
    is_outcome,
    latest,
    locked,
    now,
    selection_rules,
    short_hash,
)
from lnl.space import Choice, Integer, Space, as_json
from lnl.study import SEARCH_REPLICATES, Cell, Plan, Planned, with_prerequisites
from lnl.trial import Trial, trained_path, trial_code_hash

JOURNAL = "optuna.journal"  # below the results folder; `optuna-dashboard results/optuna.journal` opens it
CONNECT_S = 10  # until a database that does not answer is given up
PAUSE_S = 2.0  # before a search is asked again that had nothing to do
CLASSES = 10  # of a diverged trial whose row does not say
COUNTED = ("complete", "pruned")  # states of suggestions that count in a budget

optuna.logging.set_verbosity(optuna.logging.ERROR)


# ----------------------------------------------------------------------------------------------- Optuna's own objects


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler with Optuna's defaults."""
    quiet: Any = {"seed": seed, "warn_independent_sampling": False}  # conditional fields are drawn independently
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(scramble=True, warn_asynchronous_seeding=False, **quiet),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(**quiet),
        "gp": lambda: optuna.samplers.GPSampler(**quiet),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return samplers[name]()


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """One of Optuna's; none where nobody or Ray Tune prunes."""
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": optuna.pruners.MedianPruner,
        "percentile": lambda: optuna.pruners.PercentilePruner(25.0),
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return pruners.get(name, optuna.pruners.NopPruner)()


def distribution(space: Space) -> BaseDistribution:
    """In Optuna's words."""
    if isinstance(space, Choice):
        return CategoricalDistribution(space.values)
    if isinstance(space, Integer):
        return IntDistribution(space.low, space.high, space.log)
    return FloatDistribution(space.low, space.high, space.log)


def seed_of(cell: Cell, seed: int, driver: int = 0) -> int:
    """Of the sampler of a search, for its `driver`-th driver."""
    digest = hashlib.sha256(f"{seed} {cell.place}".encode()).digest()
    own = int.from_bytes(digest[:4])
    return own if driver == 0 else int(np.random.SeedSequence([own, driver]).generate_state(1)[0])


class _FileLock(BaseJournalFileLock):
    """For the journal: the system frees it when its process dies, unlike Optuna's own lock files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        self.file = open(self.path, "a")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self.file.close()


def open_storage(url: str | None, root: Path) -> optuna.storages.BaseStorage:
    """The database at `url`, or the journal of the results folder.

    Raises `StorageError` where it cannot be used, `ValueError` where `url` is none.
    """
    if url is None:
        root.mkdir(parents=True, exist_ok=True)
        path = root / JOURNAL
        with _storage_errors(str(path)):
            return JournalStorage(JournalFileBackend(str(path), lock_obj=_FileLock(root / f".{JOURNAL}.lock")))
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ValueError(f"'{url}' is no database URL: give one such as postgresql://user@host/name.") from None
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_S}
    with _storage_errors(parsed.render_as_string(hide_password=True)):
        return RDBStorage(url, engine_kwargs=options)


@contextlib.contextmanager
def _storage_errors(place: str) -> Iterator[None]:
    """Whatever a storage raises becomes one sentence."""
    try:
        yield
    except (sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
        raise StorageError(f"No driver for {place} is installed ({_first_line(error)}): pip install it.") from None
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        OSError,
    ) as error:
        cause = error.__cause__ or error
        raise StorageError(
            f"Optuna's storage {place} cannot be used ({_first_line(cause)}): see that it is there and may be written; "
            "no result is lost, and a storage that is gone is made again from the results."
        ) from None
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError) and "Invalid log format" not in str(error):
            raise
        raise StorageError(
            f"Optuna's journal {place} is damaged: move it away and run again; it is made anew from the results."
        ) from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ---------------------------------------------------------------------------------------------------------- one search


@dataclass
class Open:
    """A suggestion that this driver evaluates."""

    search: CellSearch
    number: int
    params: dict[str, Any]
    trials: tuple[Trial, ...]  # one per replicate
    lease: Lease
    asked_at: datetime
    waiting: dict[str, Planned] = field(default_factory=dict)  # id -> those, and what they start from, not yet ended
    curve: dict[int, float] = field(default_factory=dict)  # epoch -> validation accuracy, where a pruner looks


class CellSearch:
    """The search of one cell: Optuna's study beside the rows of table `suggestions`."""

    def __init__(self, plan: Plan, cell: Cell, store: Store, storage: optuna.storages.BaseStorage) -> None:
        assert plan.search is not None
        self.plan, self.cell, self.store, self.settings = plan, cell, store, plan.search
        self.failed_here = 0
        self.refused_here = 0
        self.last_failure: str | None = None
        self.idle_until = 0.0
        self.rows = rows_of(store, plan.study, cell)
        several = len(self.settings.objectives) > 1
        with locked(store.root / "suggestions"):
            self.study = optuna.create_study(
                storage=storage,
                study_name=f"{cell.name}@{store.identity()[:8]}",  # another results folder is another search
                directions=["maximize", "minimize"] if several else ["maximize"],
                pruner=make_pruner(self.settings.pruner),
                load_if_exists=True,
            )
            self.rebuilt = self._rebuild()
            attributes = self.study.user_attrs
            driver = attributes.get("drivers", len(self.rows))  # a rebuilt storage has forgotten how many there were
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(cell.default)
            joint = self.cell.sampler == "qmc"  # one sequence, whose place Optuna stores
            seed = seed_of(cell, self.settings.seed, 0 if joint else driver)
            self.study.sampler = make_sampler(cell.sampler, seed)
            self.study.set_user_attr("drivers", driver + 1)
            self._suggest_failed_ones_again(set(attributes.get("suggested_again", [])))

    def _rebuild(self) -> int:
        """Give Optuna the suggestions that the results have and it lacks; returns how many."""
        there = self.study.get_trials(deepcopy=False)
        lost = self.rows[self.rows["number"] >= len(there)]
        if lost.empty:
            return 0
        if there:
            raise StorageError(
                f"Optuna's storage has {len(there)} suggestions of {self.cell.name}, the results have more: it is an "
                f"older copy.  Delete its study '{self.study.study_name}' (`optuna delete-study`) and run again: it is "
                "made anew from the results."
            )
        for trial in frozen_trials(self.rows, self.cell):
            self.study.add_trial(trial)
        return len(lost)

    def _suggest_failed_ones_again(self, before: set[int]) -> None:
        """Once each; but not values that were refused, and would be again."""
        failed = [
            trial
            for trial in self.study.get_trials(deepcopy=False, states=[TrialState.FAIL])
            if trial.params and trial.number not in before and not trial.user_attrs.get("refused")
        ]
        for trial in failed:
            self.study.enqueue_trial(trial.params)
        if failed:
            self.study.set_user_attr("suggested_again", sorted({*before, *(trial.number for trial in failed)}))

    def standing(self) -> dict[str, int]:
        """How many suggestions are complete, pruned, running (anybody's) and failed."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}
        return {**{name: states.count(state) for name, state in names.items()}, "failed": self.failed_here}

    def in_words(self) -> Standing:
        standing = self.standing()
        setting = "" if self.cell.setting == "{}" else f" {self.cell.setting}"
        current = trial_code_hash(self.cell.trial)
        best = winner(self.rows)
        scores = "–"
        if best is not None:
            own = self.rows[(self.rows["number"] == 0) & (self.rows["state"] == "complete")]
            words = [f"suggestion {best['number']}" if best["number"] else "the arm's own values"]
            words += [f"own values {100 * own.iloc[0]['values'][0]:.1f}"] if best["number"] and len(own) else []
            scores = f"{100 * best['values'][0]:.1f} % ({'; '.join(words)})"
        return Standing(
            name=self.cell.searched_arm + setting,
            budget=self.settings.suggestions,
            finished=standing["complete"] + standing["pruned"],
            running=standing["running"],
            pruned=standing["pruned"],
            failed=standing["failed"],
            rebuilt=self.rebuilt,
            stale=int((self.rows["code_hash"] != current).sum()),
            scores=scores,
        )

    def spent(self) -> bool:
        """Whether as many suggestions are evaluated as were asked for, or have failed in this run."""
        standing = self.standing()
        ended = standing["complete"] + standing["pruned"] + standing["failed"]
        return ended >= self.settings.suggestions or self._hopeless()

    def _hopeless(self) -> bool:
        """Whether as many suggestions were refused in this run as were asked for."""
        return self.refused_here >= self.settings.suggestions

    def ask(self, mine: set[int]) -> Open | None:
        """A suggestion of a driver that died, else one more if the budget allows; None where there is nothing to do."""
        with locked(self.store.root / "suggestions"):
            for one in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if one.number not in mine and (lease := self._claim(one.number)):
                    if found := self._take(optuna.trial.Trial(self.study, one._trial_id), lease):
                        return found
            while sum(self.standing().values()) < self.settings.suggestions and not self._hopeless():
                trial = self.study.ask()
                lease = self._claim(trial.number)
                assert lease is not None, "a number is given once"
                if found := self._take(trial, lease):
                    return found
            return None

    def _claim(self, number: int) -> Lease | None:
        lease, _ = claim(self.store, f"search-{short_hash(self.cell.name)}-{number}", study=self.plan.study)
        return lease

    def _take(self, trial: optuna.trial.Trial, lease: Lease) -> Open | None:
        """The suggestion with all its values, held by this process; None where its row shows that it has ended."""
        lease.__enter__()
        number = trial.number
        rows = rows_of(self.store, self.plan.study, self.cell, number)
        if len(rows):  # its driver died between writing the row and telling Optuna
            self._tell(number, rows.iloc[0])
            lease.__exit__()
            return None
        params: dict[str, Any] = {}
        suggestion = Open(self, number, params, (), lease, now())
        try:
            for key in self.cell.space:
                if self.cell.holds(key, self.cell.trial.override(params)):
                    params[key] = self._suggest(trial, key)
            asked = self.cell.trial.override(params)
            replicates = range(SEARCH_REPLICATES, SEARCH_REPLICATES + self.settings.replicates)
            suggestion.trials = tuple(asked.override({"replicate": replicate}) for replicate in replicates)
        except ValueError as error:  # values that cannot stand beside each other
            self.fail(suggestion, str(error), refused=True)
            return None
        declared = [
            Planned(one, self.cell.searched_arm, self.cell.setting, search=self.cell.name, suggestion=number)
            for one in suggestion.trials
        ]
        suggestion.waiting = {planned.id: planned for planned in with_prerequisites(declared)}
        return suggestion

    def _suggest(self, trial: optuna.trial.Trial, key: str) -> Any:
        space = self.cell.space[key]
        if isinstance(space, Choice):
            return trial.suggest_categorical(key, space.values)
        if isinstance(space, Integer):
            return trial.suggest_int(key, space.low, space.high, log=space.log)
        return trial.suggest_float(key, space.low, space.high, log=space.log)

    # ------------------------------------------------------------------------------------------------ what came of it

    def report(self, suggestion: Open, epoch: int, accuracy: float) -> bool:
        """A pruner sees one more epoch; returns whether it gives the suggestion up."""
        suggestion.curve[epoch] = accuracy
        trial = self._living(suggestion.number)
        if trial is None:
            return False
        trial.report(accuracy, epoch)
        return epoch < suggestion.trials[0].total_epochs and trial.should_prune()

    def complete(self, suggestion: Open) -> None:
        """Close it with the means over its replicates' rows."""
        outcomes = [outcome_of(self.store, self.plan, trial) for trial in suggestion.trials]
        if missing := [trial.id for trial, one in zip(suggestion.trials, outcomes, strict=True) if one is None]:
            self.fail(suggestion, f"The results of trial {missing[0]} cannot be read: see lnl doctor.")
            return
        known = [one for one in outcomes if one is not None]
        values = [float(np.mean([one.accuracy for one in known]))]
        if len(self.settings.objectives) > 1:
            values.append(float(np.mean([one.seconds for one in known])))
        self.close(
            suggestion,
            "complete",
            values=values,
            diverged=sum(one.diverged for one in known),
            epochs=sum(one.epochs for one in known),
            seconds=sum(one.seconds for one in known),
        )

    def prune(self, suggestion: Open, seconds: float) -> None:
        last = max(suggestion.curve)
        self.close(suggestion, "pruned", values=[suggestion.curve[last]], epochs=last, seconds=seconds)

    def fail(self, suggestion: Open, message: str, refused: bool = False) -> None:
        """`refused`: its values cannot be trained with, which says nothing against the next ones."""
        self.last_failure = message
        if refused:
            self.refused_here += 1
        else:
            self.failed_here += 1
        self.close(suggestion, "failed", message=message, refused=refused)

    def close(self, suggestion: Open, state: str, refused: bool = False, **result: Any) -> None:
        """Write its row, then tell Optuna, then let go."""
        row = {
            "search": self.cell.name,
            "number": suggestion.number,
            "arm": self.cell.arm,
            "setting": self.cell.setting,
            "sampler": self.cell.sampler,
            "state": state,
            "params": canonical(suggestion.params),
            "trials": [trial.id for trial in suggestion.trials],
            "diverged": 0,
            "curve": canonical(suggestion.curve) if suggestion.curve else None,
            "code_hash": trial_code_hash(self.cell.trial),
            "space": canonical({key: as_json(space) for key, space in self.cell.space.items()}),
            "preset": self.plan.preset,
            "asked_at": suggestion.asked_at,
            "told_at": now(),
            **result,
        }
        self.store.write_suggestion(self.plan.study, row)
        self.rows = (
            pd.concat([self.rows, pd.DataFrame([row])], ignore_index=True) if len(self.rows) else pd.DataFrame([row])
        )
        self._tell(suggestion.number, row, refused)
        suggestion.lease.__exit__()

    def _tell(self, number: int, row: Any, refused: bool = False) -> None:
        if (trial := self._living(number)) is None:
            return
        trial.set_user_attr("trials", list(row["trials"]))
        if row["state"] == "complete":
            self.study.tell(number, list(row["values"]))
        elif row["state"] == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("failure", row["message"])
            trial.set_user_attr("refused", refused)
            self.study.tell(number, state=TrialState.FAIL)

    def _living(self, number: int) -> optuna.trial.Trial | None:
        """None where Optuna has been told already."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        return None if frozen.state.is_finished() else optuna.trial.Trial(self.study, frozen._trial_id)


class Outcome(NamedTuple):
    """What one trial of a suggestion gave."""

    accuracy: float  # on validation images, under the selection rule
    seconds: float
    epochs: int
    diverged: bool


def outcome_of(store: Store, plan: Plan, trial: Trial) -> Outcome | None:
    """Of a trial that has finished; None where it has not, or where its rows cannot be read.

    Its accuracy is the study's selection rule applied to the validation curve (`val_selected`: its maximum).
    """
    rows, _ = store.read("trials", plan.study, trial=trial.id)
    if rows.empty or not is_outcome(final := latest(rows)).all():
        return None
    row = final.iloc[0]
    seconds, epochs = float(row["seconds"]), int(row["epochs_done"])
    if row["status"] != "ok":
        classes = len(json.loads(row["transition"])) if isinstance(row["transition"], str) else CLASSES
        return Outcome(1 / classes, seconds, epochs, True)
    of_validation = [("split", "=", "validation"), ("metric", "=", "accuracy"), ("attempt", "=", int(row["attempt"]))]
    curve, _ = store.read("epochs", plan.study, ["epoch", "value"], of_validation, trial=trial.id)
    if curve.empty:
        return None
    scores = curve.sort_values("epoch")["value"].tolist()
    rules = selection_rules(scores, scores)
    accuracy = rules[f"accuracy_{plan.record['search']['selection']}"]
    return None if accuracy is None else Outcome(float(accuracy), seconds, epochs, False)


# ----------------------------------------------------------------------------------------------- all searches of a plan


@dataclass(frozen=True)
class Standing:
    """How a search stands."""

    name: str  # of the searched arm, with its setting
    budget: int
    finished: int  # complete or pruned
    running: int  # by any driver
    pruned: int
    failed: int  # in this run
    rebuilt: int  # suggestions that Optuna's storage had lost
    stale: int  # evaluated by other code
    scores: str  # the best validation accuracy, and the one of the arm's own values


class Searches:
    """All searches of a plan (of some arms, if given) as one source of trials to train.

    `next` gives a trial to train, `epoch` hears of its epochs and says whether to stop it, `ended` what became of it.
    Raises `StorageError` where Optuna's storage or the results folder cannot be used, `ValueError` where the
    declaration of a search has changed since its suggestions were made, unless `new` allows another one beside it.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        url: str | None = None,
        arms: Sequence[str] | None = None,
        new: bool = False,
    ) -> None:
        assert plan.search is not None
        self.plan, self.store, self.pruner = plan, store, plan.search.pruner
        cells = [cell for cell in plan.cells if arms is None or cell.arm in arms]
        self.storage = open_storage(url, store.root)
        place = sqlalchemy.make_url(url).render_as_string(hide_password=True) if url else str(store.root / JOURNAL)
        self._guard = lambda: _storage_errors(place)
        with self._guard():
            if not new:
                _refuse_changed(plan, cells, store, self.storage)
            self.searches = [CellSearch(plan, cell, store, self.storage) for cell in cells]
        self.open: list[Open] = []
        self.flying: set[str] = set()  # ids of trials being trained for us
        self.later: dict[str, float] = {}  # those that another driver trains: when to look again

    def next(self, capacity: int) -> Planned | None:
        """A trial to train now, while no more than `capacity` are wanted at once; None: nothing at this moment."""
        with self._guard():
            while True:
                for suggestion in list(self.open):
                    for planned in suggestion.waiting.values():
                        if planned.id not in self.flying and self._ready(planned):
                            self.flying.add(planned.id)
                            return planned
                if len({id for suggestion in self.open for id in suggestion.waiting}) >= capacity:
                    return None
                if not self._open_another():
                    return None

    def work(self) -> bool:
        """Whether there is a suggestion to evaluate now, by this driver."""
        with self._guard():
            while not self.open:
                if not self._open_another():
                    return False
            return True

    def _open_another(self) -> bool:
        """One more suggestion, if there is one; it ends at once where others with the same values have been trained."""
        if (suggestion := self._ask()) is None:
            return False
        self.open.append(suggestion)
        for trial in suggestion.trials:
            if outcome_of(self.store, self.plan, trial):
                suggestion.waiting.pop(trial.id, None)
        if not suggestion.waiting:
            self._finish(suggestion)
        return True

    def _ask(self) -> Open | None:
        """Of the search that is most behind."""
        clock = time.monotonic()
        awake = [search for search in self.searches if search.idle_until <= clock]
        for search in sorted(awake, key=lambda search: sum(search.standing().values())):
            if suggestion := search.ask({one.number for one in self.open if one.search is search}):
                return suggestion
            search.idle_until = clock + PAUSE_S
        return None

    def _ready(self, planned: Planned) -> bool:
        trained = all(trained_path(self.store.trained, one).exists() for one in planned.trial.prerequisites.values())
        return trained and self.later.get(planned.id, 0.0) <= time.monotonic()

    def epoch(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        """Hear of an epoch; returns whether Optuna's pruner gives the trial up."""
        if self.pruner == "none":
            return False
        stop = False
        with self._guard():
            for suggestion in self._asking_for(trial):
                if trial == suggestion.trials[0].id:
                    stop |= suggestion.search.report(suggestion, metrics["epoch"], metrics["validation_accuracy"])
        return stop

    def ended(self, trial: str, outcome: Mapping[str, Any]) -> None:
        """`outcome`: done, failed (with a message), taken (another driver trains it), pruned (with seconds)."""
        self.flying.discard(trial)
        with self._guard():
            for suggestion in self._asking_for(trial):
                if outcome["outcome"] == "taken":
                    self.later[trial] = time.monotonic() + PAUSE_S
                elif outcome["outcome"] == "done":
                    suggestion.waiting.pop(trial)
                    if not suggestion.waiting:
                        self._finish(suggestion)
                elif outcome["outcome"] == "pruned":
                    suggestion.search.prune(suggestion, outcome["seconds"])
                    self.open.remove(suggestion)
                elif outcome["outcome"] == "failed":
                    refused = outcome.get("failure") == "data_error"  # what a method asks of its trial is one, too
                    suggestion.search.fail(suggestion, outcome.get("message") or "It failed.", refused)
                    self.open.remove(suggestion)

    def _asking_for(self, trial: str) -> list[Open]:
        return [suggestion for suggestion in self.open if trial in suggestion.waiting]

    def _finish(self, suggestion: Open) -> None:
        suggestion.search.complete(suggestion)
        self.open.remove(suggestion)

    def searched_by(self, trial: str) -> tuple[str, int] | None:
        """The search whose suggestion a trial is, and its epochs; None for a trial that others start from."""
        for suggestion in self._asking_for(trial):
            if trial == suggestion.trials[0].id:
                return suggestion.search.cell.name, suggestion.trials[0].total_epochs
        return None

    def standing(self) -> list[Standing]:
        """One for each search."""
        with self._guard():
            return [search.in_words() for search in self.searches]

    def busy(self) -> bool:
        """Whether a suggestion of this driver is open."""
        return bool(self.open)

    def spent(self) -> bool:
        """Whether every search has spent its budget."""
        with self._guard():
            return all(search.spent() for search in self.searches)

    def close(self) -> None:
        """Let go of what is open: the next driver takes it over."""
        for suggestion in self.open:
            suggestion.lease.__exit__()
        self.open.clear()


def _refuse_changed(plan: Plan, cells: Sequence[Cell], store: Store, storage: optuna.storages.BaseStorage) -> None:
    """Raise `ValueError` where a search has suggestions under another declaration and none under this one."""
    rows, _ = store.read("suggestions", plan.study, ["search", "space"])
    names = {name.rpartition("@")[0] for name in optuna.get_all_study_names(storage) if store.identity()[:8] in name}
    for cell in cells:
        others = rows[rows["search"].map(lambda name: name.rpartition("/")[0] == cell.place).astype(bool)]  # noqa: B023
        if cell.name in names or (others["search"] == cell.name).any() or others.empty:
            continue
        was, now_ = json.loads(others["space"].iloc[-1]), {key: as_json(one) for key, one in cell.space.items()}
        keys = [key for key in {**was, **now_} if was.get(key) != now_.get(key)]
        what = f"the space of '{keys[0]}'" if keys else "its trials, selection, replicates, pruner or seed"
        raise ValueError(
            f"The search of arm '{cell.arm}' has changed since its {len(others)} suggestions were made ({what}): put "
            "it back, or say --new-search to begin another one beside it."
        )


# ------------------------------------------------------------------------------------------------- from rows to a plan


def rows_of(store: Store, study: str, cell: Cell, number: int | None = None) -> pd.DataFrame:
    """The readable rows of a cell's suggestions (or the row of one), by number."""
    name = short_hash(cell.name) + ("" if number is None else f"-{number}")
    columns = ["search", "number", "state", "params", "values", "trials", "curve", "message", "code_hash"]
    if number is not None:
        if not store.suggestion_path(study, cell.name, number).exists():
            return pd.DataFrame(columns=columns)
        rows, _ = store.read("suggestions", study, columns, [("number", "=", number)], trial=short_hash(cell.name))
    else:
        rows, _ = store.read("suggestions", study, columns, trial=name)
    return rows.sort_values("number", ignore_index=True)


def counting(rows: pd.DataFrame, suggestions: int) -> pd.DataFrame:
    """Of a cell's rows those that count: the first `suggestions` by number that are complete or pruned."""
    return rows[rows["state"].isin(COUNTED)].sort_values("number").head(suggestions)


def winner(rows: pd.DataFrame) -> pd.Series | None:
    """The most accurate complete suggestion, of equals the first; None where there is none."""
    complete = rows[rows["state"] == "complete"]
    if complete.empty:
        return None
    return complete.iloc[int(np.argmax([values[0] for values in complete["values"]]))]


def frozen_trials(rows: pd.DataFrame, cell: Cell) -> list[FrozenTrial]:
    """A cell's rows as Optuna's trials; a number without a row (its driver was lost) is one that failed."""
    distributions = {key: distribution(space) for key, space in cell.space.items()}
    by_number: dict[int, Any] = {int(row["number"]): row for _, row in rows.iterrows()}
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    found = []
    for number in range(max(by_number, default=-1) + 1):
        row = by_number.get(number)
        if row is None:
            found.append(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"failure": "no row"}))
            continue
        params = json.loads(row["params"])
        curve = json.loads(row["curve"]) if isinstance(row["curve"], str) else {}
        found.append(
            optuna.trial.create_trial(
                state=states[row["state"]],
                params=params,
                distributions={key: distributions[key] for key in params},
                values=list(row["values"]) if row["state"] == "complete" else None,
                intermediate_values={int(epoch): value for epoch, value in curve.items()},
                user_attrs={"trials": list(row["trials"])},
            )
        )
    return found


def importances(rows: pd.DataFrame, cell: Cell) -> dict[str, float]:
    """Optuna's importance of each field for the accuracy (PED-ANOVA, its default), which sum to 1; {} where unknown."""
    complete = rows[rows["state"] == "complete"]
    if len(complete) < 4 or complete["values"].map(lambda values: values[0]).nunique() < 2:
        return {}
    directions: list[Any] = ["maximize", "minimize"][: len(complete["values"].iloc[0])]
    study = optuna.create_study(directions=directions)
    study.add_trials(frozen_trials(complete, cell))
    target = (lambda trial: trial.values[0]) if len(directions) > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(study, target=target)
        except (ValueError, RuntimeError):  # no field that all suggestions have, or that varies
            return {}
    return {key: float(value) for key, value in found.items()}


def confirmed(plan: Plan, store: Store) -> Plan:
    """The plan with a searched arm for each search that has spent its budget: the arm with the best values found.

    It is trained on the study's replicates beside the arm itself, is compared with it, and stands for it in a second
    copy of every contrast and of every panel that goes across factors.
    """
    if plan.search is None:
        return plan
    cells = []
    best: dict[str, dict[str, Any]] = {}  # searched arm -> setting -> values
    for cell, said in zip(plan.cells, plan.record["search"]["cells"], strict=True):
        rows = counting(rows_of(store, plan.study, cell), plan.search.suggestions)
        found = winner(rows) if len(rows) == plan.search.suggestions else None
        record = {**said, "finished": len(rows), "importance": importances(rows, cell)}
        if found is not None:
            params = json.loads(found["params"])
            record["winner"] = {"number": int(found["number"]), "params": params, "values": list(found["values"])}
            best.setdefault(cell.searched_arm, {})[cell.setting] = params
        cells.append(record)
    record = {**plan.record, "search": {**plan.record["search"], "cells": cells}}
    return _with_searched_arms(replace(plan, record=record), best) if best else replace(plan, record=record)


def _with_searched_arms(plan: Plan, best: Mapping[str, Mapping[str, Any]]) -> Plan:
    by_id = {planned.id: planned for planned in plan.trials}
    own = [by_id[entry["trial"]] for entry in plan.record["trials"]]
    source = {cell.searched_arm: cell.arm for cell in plan.cells if cell.searched_arm in best}
    everywhere = plan.search is not None and plan.search.settings == "base"
    searched = [
        Planned(planned.trial.override(params), arm, planned.setting)
        for arm, values in best.items()
        for planned in own
        if planned.arm == source[arm] and (params := values.get("{}" if everywhere else planned.setting)) is not None
    ]
    declared = sorted([*own, *searched], key=lambda planned: planned.trial.replicate)
    trials = with_prerequisites(declared)
    arms, panels = dict(plan.record["arms"]), dict[str, Any]()
    stands: dict[str, dict[str, str]] = {}  # sampler -> arm -> its searched arm
    for cell in plan.cells:
        if (arm := cell.searched_arm) in best:
            values = best[arm].get("{}", next(iter(best[arm].values())))
            arms[arm] = {**arms[cell.arm], **values}
            stands.setdefault(cell.sampler, {})[cell.arm] = arm
    curves = next(iter(plan.record["panels"].values()))["curves"]
    for arm in dict.fromkeys(source.values()):
        both = [arm, *(mine[arm] for mine in stands.values() if arm in mine)]
        title = f"{arm.replace('_', ' ')}: own and searched values"
        panels[f"search_{arm}"] = {"title": title, "arms": both, "across": [], "curves": curves, "reference": arm}
    panels |= plan.record["panels"]
    for sampler, mine in stands.items():
        for name, panel in plan.record["panels"].items():
            if panel["across"] and (there := [mine[arm] for arm in panel["arms"] if arm in mine]):
                title = f"{panel['title']}, values searched by {sampler}"
                panels[f"{name}_{sampler}"] = {**panel, "title": title, "arms": there, "reference": there[0]}
    any_size = {"direction": "any", "smallest_effect": 0.0}
    contrasts = [{"arm": arm, "against": source[arm], **any_size} for arm in source]
    for first, second in itertools.combinations(stands, 2):
        both_searched = [arm for arm in stands[first] if arm in stands[second]]
        contrasts += [{"arm": stands[first][a], "against": stands[second][a], **any_size} for a in both_searched]
    contrasts += plan.record["contrasts"]
    for mine in stands.values():
        contrasts += [
            {**contrast, "arm": mine[contrast["arm"]], "against": mine[contrast["against"]]}
            for contrast in plan.record["contrasts"]
            if {contrast["arm"], contrast["against"]} <= set(mine)
        ]
    record = {
        **plan.record,
        "arms": arms,
        "panels": panels,
        "contrasts": contrasts,
        "trials": [
            {"trial": p.id, "arm": p.arm, "setting": json.loads(p.setting), "replicate": p.trial.replicate}
            for p in declared
        ],
        "prerequisites": [{"trial": p.id, "arm": p.arm} for p in trials if p.prerequisite],
    }
    return replace(plan, trials=trials, record=record)
