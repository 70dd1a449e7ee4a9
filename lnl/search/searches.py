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
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
import pandas as pd

from lnl.search.cell_search import CellSearch, Open, Standing, outcome_of
from lnl.search.optuna_objects import open_storage, place_of, storage_errors
from lnl.search.rows import _on_current_data, all_rows, rows_of
from lnl.space import as_json
from lnl.storage.leases import is_held
from lnl.storage.store import Store
from lnl.study.plan import Cell, Plan, Planned, with_prerequisites
from lnl.trial.config import Trial
from lnl.trial.provenance import Current
from lnl.trial.trained import is_trained

PAUSE_S = 2.0  # before a search is asked again that had nothing to do


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
