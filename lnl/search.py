"""Optuna in every arm of a study: suggestions, their memory, equal budgets, the plan that confirms the winners.

The only module that imports Optuna.  A *suggestion* is one point of a search, trained on one or more replicates that
belong to searches alone.  Optuna's storage is the memory of a search while it runs (a journal file in the results
folder, or a database for drivers on several machines); the record of results is the table `suggestions`, whose row is
written before Optuna is told, and from which a lost storage is made again.  What makes this safe to kill at any time:

- A suggestion that is being evaluated has a lease, like a trial.  One that is open without a living holder is taken
  over by the next driver, with the same values, and its trials go on from their checkpoints.
- Asking, taking over and closing happen under one lock; of two drivers that both held a suggestion, because the first
  was silent for so long that its lease lapsed, the first to write its row wins.
- A suggestion that failed by accident does not count; the next run suggests its values again.  Nor do values that a
  method refuses; others take their place.  One that diverged, or started from
  what did, counts as chance accuracy.

Samplers have Optuna's defaults and the seed `seed_of(cell)`, so that one driver that evaluates one suggestion at a
time gets what plain Optuna gives; every further driver of a search (a second one, or the next after a kill) has the
next seed of its own, because a sampler that starts again would repeat its draws.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
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

from lnl.files import is_there, lock_file, open_file
from lnl.provenance import Current
from lnl.results import (
    BY_CODE,
    Lease,
    Place,
    StorageError,
    Store,
    accuracies,
    canonical,
    claim,
    counting,
    diverged,
    is_held,
    is_outcome,
    latest,
    locked,
    now,
    selection_rules,
    short_hash,
    tell_left_out,
    why_stale,
)
from lnl.space import Choice, Integer, Space, as_json
from lnl.study import SEARCH_REPLICATES, Cell, Plan, Planned, trials_record, with_prerequisites
from lnl.trial import Trial, is_trained

JOURNAL = "optuna.journal"  # below the results folder; `optuna-dashboard results/optuna.journal` opens it
CONNECT_S = 10  # until a database that does not answer is given up
PAUSE_S = 2.0  # before a search is asked again that had nothing to do
COUNTING = (TrialState.COMPLETE, TrialState.PRUNED)  # suggestions that count in a budget, as `lnl.results.counting`
ENDED = (*COUNTING, TrialState.FAIL)
ROW = ["search", "number", "state", "params", "values", "trials", "curve", "message", "refused", "space"]
ROW += ["code_hash", "sources_hash"]

logger = logging.getLogger(__name__)
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


def seed_of(cell: Cell, seed: int, driver: int = 0, trials: int = 0) -> int:
    """Of the sampler of a search, for its `driver`-th driver, which found so many suggestions evaluated."""
    digest = hashlib.sha256(f"{seed} {cell.place}".encode()).digest()
    own = int.from_bytes(digest[:4])
    return int(np.random.SeedSequence([own, driver, trials]).generate_state(1)[0]) if driver or trials else own


class _FileLock(BaseJournalFileLock):
    """For the journal: the system frees it when its process dies, unlike Optuna's own lock files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        self.file = lock_file(self.path)
        return True

    def release(self) -> None:
        self.file.close()


def open_storage(url: str | None, root: Place) -> optuna.storages.BaseStorage:
    """The database at `url`, or the journal of the results folder.

    Raises `StorageError` where it cannot be used, `ValueError` where `url` is none, or must be given.
    """
    if url is None:
        if not isinstance(root, Path):
            raise ValueError(
                f"Optuna keeps no journal on object storage, as at {root}: give a search --optuna or $LNL_OPTUNA, such "
                "as postgresql://user@host/name."
            )
        with storage_errors(place_of(url, root)):
            root.mkdir(parents=True, exist_ok=True)
            if is_there(root / JOURNAL):
                open_file(root / JOURNAL).close()  # Optuna would wait for ever where it is a pipe
            lock = _FileLock(root / f".{JOURNAL}.lock")
            return JournalStorage(JournalFileBackend(str(root / JOURNAL), lock_obj=lock))
    options: dict[str, Any] = {"pool_pre_ping": True}
    place = place_of(url, root)
    if sqlalchemy.make_url(url).get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_S}
    with storage_errors(place), locked(root / "suggestions"):  # of two drivers one makes the tables
        return RDBStorage(url, engine_kwargs=options)


def place_of(url: str | None, root: Place) -> str:
    """A storage as messages name it: without a password.  Raises `ValueError` where `url` is none."""
    if url is None:
        return str(root / JOURNAL)
    try:
        return sqlalchemy.make_url(url).set(query={}).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError(
            "What --optuna or $LNL_OPTUNA gives is no database URL: one looks like postgresql://user@host/name."
        ) from None


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Whatever a storage raises becomes one sentence."""
    try:
        yield
    except StorageError:
        raise
    except (sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
        raise StorageError(f"No driver for {place} is installed ({_first_line(error)}): pip install it.") from error
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError) and "Invalid log format" not in str(error):
            raise
        raise StorageError(
            f"Optuna's journal {place} is damaged: move it away and run again; it is made anew from the results."
        ) from error
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        OSError,
        RuntimeError,
        KeyError,
    ) as error:
        if isinstance(error, RuntimeError | KeyError) and not _is_optunas(error):
            raise
        cause = error.__cause__ or error
        raise StorageError(
            f"Optuna's storage {place} cannot be used ({_first_line(cause)}): see that it is there and may be written; "
            "no result is lost, and a storage that is gone is made again from the results."
        ) from error


def _is_optunas(error: BaseException) -> bool:
    """Whether Optuna or its database raised it: for one of another version, or a study that was deleted."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return place.partition(".")[0] in ("optuna", "sqlalchemy") or isinstance(
        error, optuna.exceptions.OptunaError | sqlalchemy.exc.SQLAlchemyError
    )


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

    @property
    def own(self) -> bool:
        """Whether these are the arm's own values."""
        return self.params == self.search.cell.default


class CellSearch:
    """The search of one cell: Optuna's study beside the rows of table `suggestions`."""

    def __init__(
        self,
        plan: Plan,
        cell: Cell,
        store: Store,
        storage: optuna.storages.BaseStorage,
        rows: pd.DataFrame,
        current: Current,
    ) -> None:
        assert plan.search is not None
        self.sources = current.sources(cell.trial)
        self.current = current
        self.plan, self.cell, self.store, self.settings, self.rows = plan, cell, store, plan.search, rows
        self.failed_here = 0
        self.refused_here = 0
        self.known = 0  # suggestions, when last looked at
        self.last_failure: str | None = None
        self.idle_until = 0.0
        several = len(self.settings.objectives) > 1
        with self._locked():
            self.study = optuna.create_study(
                storage=storage,
                study_name=f"{cell.name}@{store.identity()[:8]}",  # another results folder is another search
                directions=["maximize", "minimize"] if several else ["maximize"],
                pruner=make_pruner(self.settings.pruner),
                load_if_exists=True,
            )
            self.rebuilt = self._rebuild()
            self.study.sampler = make_sampler(cell.sampler, self._seed())
            self.lost = self._suggest_again()
        self.standing()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.store.root / "suggestions")

    def _rebuild(self) -> int:
        """Give Optuna the suggestions that the results have and it lacks; returns how many."""
        there = len(self.study.get_trials(deepcopy=False))
        missing = frozen_trials(self.rows, self.cell)[there:]
        for trial in missing:
            self.study.add_trial(trial)
        default = self.cell.default
        if not any(_wanted(one) == default for one in self.study.get_trials(deepcopy=False)):
            self.study.enqueue_trial(default)
        return len(missing)

    def _seed(self) -> int:
        """No driver has that of another one, nor that of one from before a rebuild."""
        trials = len(self.study.get_trials(deepcopy=False, states=ENDED))
        attributes = self.study.user_attrs
        driver = attributes.get("drivers", 0)
        self.study.set_user_attr("drivers", driver + 1)
        own = seed_of(self.cell, self.settings.seed, driver, trials)
        if self.cell.sampler != "qmc":
            return own
        # all drivers draw from one sequence, whose place is in Optuna's storage; a rebuilt one begins another sequence
        if "sequence" not in attributes:
            self.study.set_user_attr("sequence", own)
        return int(attributes.get("sequence", own))

    def _suggest_again(self) -> set[int]:
        """Values that failed by accident, and those whose row is lost; returns the numbers of the latter."""
        trials = self.study.get_trials(deepcopy=False)
        with_row = set(self.rows["number"])
        ended = {one.number for one in trials if one.state in COUNTING}
        lost = {number for number in ended - with_row if self._row(number) is None}  # not those told since we read
        refused = self.rows["refused"].map(lambda value: pd.notna(value) and bool(value)).astype(bool)
        failed = set(self.rows.loc[(self.rows["state"] == "failed") & ~refused, "number"])
        held = [canonical(_wanted(one)) for one in trials if one.number not in lost and one.state != TrialState.FAIL]
        for one in trials:
            if one.number in lost | failed and one.params and canonical(one.params) not in held:
                self.study.enqueue_trial(one.params)
                held.append(canonical(one.params))
        return lost

    def standing(self) -> dict[str, int]:
        """How many suggestions are complete, pruned, running (anybody's) and failed in this run."""
        states = [one.state for one in self.study.get_trials(deepcopy=False) if one.number not in self.lost]
        names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}
        standing = {**{name: states.count(state) for name, state in names.items()}, "failed": self.failed_here}
        self.known = sum(standing.values())
        return standing

    def in_words(self) -> Standing:
        standing = self.standing()
        setting = "" if self.cell.setting == "{}" else f" {self.cell.setting}"
        rows = counting(self.rows, self.settings.suggestions)
        best = winner(rows)
        scores = "–"
        if best is not None:
            default = canonical(self.cell.default)
            own = rows[(rows["params"] == default) & (rows["state"] == "complete")]
            wins = best["params"] == default
            words = ["the arm's own values" if wins else f"suggestion {best['number']}"]
            words += [f"own values {100 * own.iloc[0]['values'][0]:.1f}"] if len(own) and not wins else []
            scores = f"{100 * best['values'][0]:.1f} % ({'; '.join(words)})"
        return Standing(
            name=self.cell.searched_arm + setting,
            budget=self.settings.suggestions,
            finished=standing["complete"] + standing["pruned"],
            running=standing["running"],
            pruned=standing["pruned"],
            failed=standing["failed"],
            rebuilt=self.rebuilt,
            stale=int((rows["code_hash"] != self.sources.code_hash).sum()),
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
        with self._locked():
            for one in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if one.number not in mine and (lease := self._claim(one.number)):
                    if found := self._take(optuna.trial.Trial(self.study, one._trial_id), lease):
                        return found
            while sum(self.standing().values()) < self.settings.suggestions and not self._hopeless():
                trial = self.study.ask()
                self.known += 1
                if (lease := self._claim(trial.number)) is None:
                    raise StorageError(
                        f"Another driver evaluates suggestion {trial.number} of {self.cell.name} with another Optuna "
                        "storage: give both the same --optuna."
                    )
                if found := self._take(trial, lease):
                    return found
            return None

    def _claim(self, number: int) -> Lease | None:
        lease, _ = claim(self.store, self.plan.study, f"search-{short_hash(self.cell.name)}-{number}")
        return lease

    def _take(self, trial: optuna.trial.Trial, lease: Lease) -> Open | None:
        """The suggestion with all its values, held by this process; None where it has ended, or is refused."""
        lease.__enter__()
        params: dict[str, Any] = {}
        for key in self.cell.space:
            if self.cell.holds(key, params):
                params[key] = self._suggest(trial, key)
        known = dict(self._frozen(trial.number).intermediate_values)
        suggestion = Open(self, trial.number, params, (), lease, now(), curve=known)
        if (row := self._row(trial.number)) is not None:  # its driver died between writing the row and telling Optuna
            self._tell(trial.number, row)
            lease.__exit__()
            return None
        try:
            asked = self.cell.trial.override(params)
        except ValueError as error:  # values that cannot stand beside each other
            self._end(suggestion, "failed", message=str(error), refused=True)
            return None
        replicates = range(SEARCH_REPLICATES, SEARCH_REPLICATES + self.settings.replicates)
        suggestion.trials = tuple(asked.override({"replicate": replicate}) for replicate in replicates)
        declared = [
            Planned(one, self.cell.searched_arm, self.cell.setting, search=self.cell.name, suggestion=trial.number)
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

    def _row(self, number: int) -> dict[str, Any] | None:
        """The row of a suggestion, if there is a readable one."""
        path = self.store.suggestion_path(self.plan.study, self.cell.name, number)
        rows, _ = self.store.read("suggestions", self.plan.study, ROW, files=path.stem)
        return rows.iloc[0].to_dict() if len(rows) else None  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------------ what came of it

    def report(self, suggestion: Open, epoch: int, accuracy: float) -> bool:
        """A pruner sees one more epoch; returns whether it gives the suggestion up.  The arm's own values never are."""
        if epoch in suggestion.curve:  # a trial that goes on from a checkpoint comes to it again
            return False
        suggestion.curve[epoch] = accuracy
        frozen = self._frozen(suggestion.number)
        if frozen.state.is_finished():
            return False
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        trial.report(accuracy, epoch)
        return not suggestion.own and epoch < suggestion.trials[0].total_epochs and trial.should_prune()

    def complete(self, suggestion: Open) -> None:
        """Close it with the means over its replicates' rows."""
        outcomes = [outcome_of(self.store, self.plan, trial, self.current) for trial in suggestion.trials]
        if missing := [trial.id for trial, one in zip(suggestion.trials, outcomes, strict=True) if one is None]:
            self.fail(suggestion, f"The results of trial {missing[0]} cannot be read: see `lnl doctor`.")
            return
        known = [one for one in outcomes if one is not None]
        values = [float(np.mean([one.accuracy for one in known]))]
        if len(self.settings.objectives) > 1:
            values.append(float(np.mean([one.seconds for one in known])))
        totals = {name: sum(getattr(one, name) for one in known) for name in ("diverged", "epochs", "seconds")}
        self.close(suggestion, "complete", values=values, **totals)

    def prune(self, suggestion: Open, seconds: float) -> None:
        last = max(suggestion.curve)
        self.close(suggestion, "pruned", values=[suggestion.curve[last]], epochs=last, seconds=seconds)

    def fail(self, suggestion: Open, message: str, refused: bool = False) -> None:
        """`refused`: its values cannot be trained with, which says nothing against the next ones."""
        self.close(suggestion, "failed", message=message, refused=refused)

    def close(self, suggestion: Open, state: str, **result: Any) -> None:
        with self._locked():
            self._end(suggestion, state, **result)

    def _end(self, suggestion: Open, state: str, **result: Any) -> None:
        """Write its row, then tell Optuna, then let go.  A driver that took it over meanwhile may have been first."""
        number = suggestion.number
        if (row := self._row(number)) is None:
            row = {
                "search": self.cell.name,
                "number": number,
                "arm": self.cell.arm,
                "setting": self.cell.setting,
                "sampler": self.cell.sampler,
                "state": state,
                "params": canonical(suggestion.params),
                "trials": [trial.id for trial in suggestion.trials],
                "diverged": 0,
                "refused": False,
                "curve": canonical(suggestion.curve) if suggestion.curve else None,
                "code_hash": self.sources.code_hash,
                "sources_hash": self.sources.sources_hash,
                "space": canonical({key: as_json(space) for key, space in self.cell.space.items()}),
                "preset": self.plan.preset,
                "asked_at": suggestion.asked_at,
                "told_at": now(),
                **result,
            }
            self.store.write_suggestion(self.plan.study, row)
        known = {name: row.get(name) for name in ROW}
        self.rows = pd.DataFrame([*self.rows.to_dict("records"), known], columns=ROW)
        if row["state"] == "failed":
            self.last_failure = row["message"]
            refused = pd.notna(row["refused"]) and bool(row["refused"])
            self.refused_here += refused
            self.failed_here += not refused
        self._tell(number, row)
        suggestion.lease.__exit__()

    def _tell(self, number: int, row: Mapping[str, Any]) -> None:
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        trial.set_user_attr("trials", list(row["trials"]))
        if row["state"] == "complete":
            self.study.tell(number, list(row["values"]))
        elif row["state"] == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("failure", row["message"])
            self.study.tell(number, state=TrialState.FAIL)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]


def _wanted(trial: FrozenTrial) -> dict[str, Any]:
    """The values of a trial, also of one that waits to be asked for, or was lost while it was."""
    return dict(trial.system_attrs.get("fixed_params", trial.params))


class Outcome(NamedTuple):
    """What one trial of a suggestion gave."""

    accuracy: float  # on validation images, under the selection rule
    seconds: float
    epochs: int
    diverged: bool


def outcome_of(store: Store, plan: Plan, trial: Trial, current: Current) -> Outcome | None:
    """Of a trial that is finished by the current code on the current data; None where it is not, or its rows are lost.

    Its accuracy is the study's selection rule applied to the validation curve (`val_selected`: its maximum).
    """
    rows, _ = store.read("trials", plan.study, files=f"{trial.id}-*")
    final = latest(rows, {trial.id: current.sources(trial)})
    if final.empty or final["stale"].any() or not is_outcome(final).all():
        return None
    row = final.iloc[0]
    seconds, epochs = float(row["seconds"]), int(row["epochs_done"])
    if diverged(final).all():
        chance = float(accuracies(final, plan.record["search"]["selection"]).iloc[0])
        return Outcome(chance, seconds, epochs, True)
    of_validation = [("split", "=", "validation"), ("metric", "=", "accuracy"), ("attempt", "=", int(row["attempt"]))]
    curve, _ = store.read("epochs", plan.study, ["epoch", "value"], of_validation, files=f"{trial.id}-*")
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
        current: Current | None = None,
    ) -> None:
        assert plan.search is not None
        self.plan, self.store, self.pruner = plan, store, plan.search.pruner
        self.current = current or Current()
        self._place = place_of(url, store.root)
        cells = [cell for cell in plan.cells if arms is None or cell.arm in arms]
        storage = open_storage(url, store.root)
        rows = all_rows(store, plan.study)
        with self._guard():
            if not new:
                _refuse_changed(cells, rows, store, storage)
            _refuse_other_data(cells, rows, self.current)
            self.searches = [
                CellSearch(plan, cell, store, storage, rows_of(rows, cell), self.current) for cell in cells
            ]
        self.open: list[Open] = []
        self.flying: set[str] = set()  # ids of trials being trained for us
        self.taken: set[str] = set()  # ids of trials that another driver trains

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self._place)

    def next(self, capacity: int) -> Planned | None:
        """A trial to train now, while no more than `capacity` are wanted at once; None: nothing at this moment."""
        with self._guard():
            while True:
                for suggestion in list(self.open):
                    for planned in list(suggestion.waiting.values()):
                        if planned.id not in self.flying and self._ready(suggestion, planned):
                            self.flying.add(planned.id)
                            return replace(planned, prerequisite=self._is_prerequisite(planned.id))
                wanted = {id for suggestion in self.open for id in suggestion.waiting}
                if len(wanted - self.taken) >= capacity:
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
        own = {trial.id for trial in suggestion.trials}
        for planned in list(suggestion.waiting.values()):
            kept = not planned.prerequisite or self._trained(planned.trial)
            if kept and (planned.id not in own or outcome_of(self.store, self.plan, planned.trial, self.current)):
                suggestion.waiting.pop(planned.id)
        if not suggestion.waiting:
            self._finish(suggestion)
        return True

    def _ask(self) -> Open | None:
        """Of the search that is most behind."""
        clock = time.monotonic()
        awake = [search for search in self.searches if search.idle_until <= clock]
        for search in sorted(awake, key=lambda search: search.known):
            if suggestion := search.ask({one.number for one in self.open if one.search is search}):
                return suggestion
            search.idle_until = clock + PAUSE_S
        return None

    def _ready(self, suggestion: Open, planned: Planned) -> bool:
        """Whether all that it starts from is trained, and nobody else trains it."""
        if not all(self._trained(one) for one in planned.trial.prerequisites.values()):
            for before in with_prerequisites([planned]):  # its file may have been refused since: then it waits again
                if before.id not in suggestion.waiting and not self._trained(before.trial):
                    suggestion.waiting[before.id] = before
            return False
        if planned.id in self.taken and is_held(self.store, self.plan.study, planned.id):
            return False
        self.taken.discard(planned.id)
        return True

    def _trained(self, trial: Trial) -> bool:
        return is_trained(self.store, self.plan.study, trial, self.current)

    def _is_prerequisite(self, trial: str) -> bool:
        return any(suggestion.waiting[trial].prerequisite for suggestion in self._asking_for(trial))

    def _asking_for(self, trial: str) -> list[Open]:
        return [suggestion for suggestion in self.open if trial in suggestion.waiting]

    def epoch(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        """Hear of an epoch; returns whether Optuna's pruner gives the trial up, for every search that asks for it."""
        if self.pruner == "none":
            return False
        with self._guard():
            asking = [one for one in self._asking_for(trial) if trial == one.trials[0].id]
            wishes = [one.search.report(one, metrics["epoch"], metrics["validation_accuracy"]) for one in asking]
            return bool(wishes) and all(wishes) and not self._is_prerequisite(trial)

    def prunable(self, trial: str) -> list[tuple[str, int]]:
        """The searches whose suggestion a trial is, and its epochs; none where somebody needs it whole.

        Those are trials that others start from, and the arm's own values.
        """
        asking = self._asking_for(trial)
        if any(one.own for one in asking) or self._is_prerequisite(trial):
            return []
        return [(one.search.cell.name, one.trials[0].total_epochs) for one in asking]

    def ended(self, trial: str, outcome: Mapping[str, Any]) -> None:
        """`outcome`: done or failed (with its failure's class and a message), taken (by another driver), pruned."""
        self.flying.discard(trial)
        how = outcome["outcome"]
        with self._guard():
            if how == "taken":
                self.taken.add(trial)
            for suggestion in self._asking_for(trial):
                search = suggestion.search
                if how == "done":
                    self._done(suggestion, suggestion.waiting[trial], outcome)
                elif how == "pruned" and suggestion.curve:  # without: asked for since, and trained again
                    search.prune(suggestion, outcome["seconds"])
                    self.open.remove(suggestion)
                elif how == "failed":
                    refused = outcome.get("refused", False) and not suggestion.own
                    search.fail(suggestion, outcome.get("message") or "It failed.", refused)
                    self.open.remove(suggestion)

    def again(self, trial: str) -> None:
        """It ended for want of memory: `next` gives it once more."""
        self.flying.discard(trial)

    def _done(self, suggestion: Open, planned: Planned, outcome: Mapping[str, Any]) -> None:
        if planned.prerequisite and not self._trained(planned.trial):
            return  # it was trained before anybody asked to keep what it has learnt: once more
        suggestion.waiting.pop(planned.id)
        if not suggestion.waiting:
            self._finish(suggestion)

    def _finish(self, suggestion: Open) -> None:
        suggestion.search.complete(suggestion)
        self.open.remove(suggestion)

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


def _refuse_changed(
    cells: Sequence[Cell], rows: pd.DataFrame, store: Store, storage: optuna.storages.BaseStorage
) -> None:
    """Raise `ValueError` where a search has suggestions under another declaration and none under this one."""
    names = {name.rpartition("@")[0] for name in optuna.get_all_study_names(storage) if store.identity()[:8] in name}
    names |= set(rows["search"])
    places = rows["search"].map(lambda name: name.rpartition("/")[0])
    for cell in cells:
        others = rows[places == cell.place]
        if cell.name in names or others.empty:
            continue
        was, now_ = json.loads(others["space"].iloc[-1]), {key: as_json(one) for key, one in cell.space.items()}
        keys = [key for key in {**was, **now_} if was.get(key) != now_.get(key)]
        what = f"the space of '{keys[0]}'" if keys else "its trials, selection, replicates, pruner or seed"
        raise ValueError(
            f"The search of arm '{cell.arm}' has changed since its {len(others)} suggestions were made ({what}): put "
            "it back, or say --new-search to begin another one beside it."
        )


def _refuse_other_data(cells: Sequence[Cell], rows: pd.DataFrame, current: Current) -> None:
    """Raise `ValueError` where a search has suggestions that were scored on other data."""
    for cell in cells:
        of_cell = rows_of(rows, cell)
        if count := len(of_cell) - len(_on_current_data(of_cell, cell, current)):
            raise ValueError(
                f"The data of the search of arm '{cell.arm}' have changed since {count} of its suggestions were made, "
                "and new ones cannot be compared with them: put the data back, begin another search with "
                "--new-search --search-seed N, or use another --storage."
            )


def _on_current_data(rows: pd.DataFrame, cell: Cell, current: Current) -> pd.DataFrame:
    """A cell's suggestions that were scored on the data that are there now, as far as that is known."""
    stale = why_stale(rows.assign(trial=cell.name), {cell.name: current.sources(cell.trial)})
    return rows[stale.isin(["", *BY_CODE])].reset_index(drop=True)


# ------------------------------------------------------------------------------------------------- from rows to a plan


def all_rows(store: Store, study: str) -> pd.DataFrame:
    """The readable suggestions of a study's searches."""
    rows, broken = store.read("suggestions", study, ROW)
    tell_left_out(broken)
    return rows


def rows_of(rows: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Those of one cell, by number."""
    return rows[rows["search"] == cell.name].sort_values("number", ignore_index=True)


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


def confirmed(plan: Plan, store: Store, current: Current | None = None) -> Plan:
    """The plan with a searched arm for each search that has spent its budget: the arm with the best values found.

    Suggestions that were scored on other data than those of `current` do not count.

    It is trained on the study's replicates beside the arm itself, is compared with it, and stands for it in a second
    copy of every contrast and of every panel that goes across factors.
    """
    if plan.search is None:
        return plan
    cells = []
    stored = all_rows(store, plan.study)
    best: dict[str, dict[str, Any]] = {}  # searched arm -> setting -> values
    for cell, said in zip(plan.cells, plan.record["search"]["cells"], strict=True):
        rows = _on_current_data(rows_of(stored, cell), cell, current or Current())
        rows = counting(rows, plan.search.suggestions)
        found = winner(rows) if len(rows) == plan.search.suggestions else None
        record = {**said, "finished": len(rows), "importance": importances(rows, cell)}
        if found is not None:
            params = json.loads(found["params"])
            record["winner"] = {"number": int(found["number"]), "params": params, "values": list(found["values"])}
            best.setdefault(cell.searched_arm, {})[cell.setting] = params
        cells.append(record)
    record = {**plan.record, "search": {**plan.record["search"], "cells": cells}}
    return _with_searched_arms(replace(plan, record=record), best) if best else replace(plan, record=record)


def _with_values(planned: Planned, arm: str, params: Mapping[str, Any]) -> Planned | None:
    """A planned trial with the values that were found; None, and said so, where they cannot be in its setting."""
    try:
        return Planned(planned.trial.override(params), arm, planned.setting)
    except ValueError as error:
        if planned.trial.replicate == 0:
            logger.warning("%s is left out of setting %s: %s", arm, planned.setting, error)
        return None


def _with_searched_arms(plan: Plan, best: Mapping[str, Mapping[str, Any]]) -> Plan:
    by_id = {planned.id: planned for planned in plan.trials}
    own = [by_id[entry["trial"]] for entry in plan.record["trials"]]
    source = {cell.searched_arm: cell.arm for cell in plan.cells if cell.searched_arm in best}
    everywhere = plan.search is not None and plan.search.settings == "base"
    searched = [
        one
        for arm, values in best.items()
        for planned in own
        if planned.arm == source[arm]
        and (params := values.get("{}" if everywhere else planned.setting)) is not None
        and (one := _with_values(planned, arm, params)) is not None
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
        **trials_record(declared, trials),
    }
    return replace(plan, trials=trials, record=record)
