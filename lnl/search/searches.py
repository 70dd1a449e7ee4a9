"""All searches of a plan: `Searches`, which a run asks for trials (it is a `SearchSource` of `lnl.execution`).

A *suggestion* is one point of a search, trained on one or more replicates that
belong to searches alone.  Optuna's storage is the memory of a search while it runs (a journal file in the results
folder, or a database for drivers on several machines); the record of results is the table `suggestions`, whose row is
written before Optuna hears of it, and from which a lost storage is made again.  So a driver may be killed at any time:

- A suggestion that is being evaluated has a lease, like a trial.  One that is running without a living holder is taken
  over by the next driver, with the same values, and its trials go on from their checkpoints.
- Asking, taking over and closing happen under one lock; of two drivers that both held a suggestion, because the first
  was silent for so long that its lease lapsed, the first to write its row wins.
- A suggestion that failed by accident does not count; the next run suggests its values again.  Nor do values that a
  method refuses; others take their place.  One that diverged, or started from what did, counts as chance accuracy.

Samplers have Optuna's defaults and the seed of `seed_of`, so that one driver that evaluates one suggestion at a
time gets what plain Optuna gives; every further driver of a search (a second one, or the next after a kill) has the
next seed of its own, because a sampler that starts again would repeat its draws.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import optuna
import pandas as pd

from lnl.search.cell_search import CellSearch, RunningSuggestion
from lnl.search.optuna_objects import open_storage, place_of, storage_errors
from lnl.search.rows import all_rows, on_current_data, rows_of
from lnl.search.scores import Standing, score_of
from lnl.space import as_json
from lnl.storage.leases import is_held
from lnl.storage.store import Store
from lnl.study.plan import Cell, Plan, Planned, with_prerequisites
from lnl.trial.config import Trial
from lnl.trial.provenance import Current
from lnl.trial.reports import Metrics, TrialOutcome
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
        self.running: list[RunningSuggestion] = []
        self.training: set[str] = set()  # ids of trials that this driver trains
        self.taken: set[str] = set()  # ids of trials that another driver trains

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self._place)

    def next(self, capacity: int) -> Planned | None:
        """A trial to train now, while no more than `capacity` are wanted at once; None: nothing at this moment."""
        with self._guard():
            while True:
                for suggestion in list(self.running):
                    for planned in list(suggestion.waiting.values()):
                        if planned.id not in self.training and self._ready(suggestion, planned):
                            self.training.add(planned.id)
                            return replace(planned, prerequisite=self._is_prerequisite(planned.id))
                wanted = {id for suggestion in self.running for id in suggestion.waiting}
                if len(wanted - self.taken) >= capacity:
                    return None
                if not self._start_another():
                    return None

    def work(self) -> bool:
        """Whether there is a suggestion to evaluate now, by this driver."""
        with self._guard():
            while not self.running:
                if not self._start_another():
                    return False
            return True

    def _start_another(self) -> bool:
        """Start one more suggestion, if there is one; it ends at once where its trials have been trained for others."""
        if (suggestion := self._next_suggestion()) is None:
            return False
        self.running.append(suggestion)
        own = {trial.id for trial in suggestion.trials}
        for planned in list(suggestion.waiting.values()):
            kept = not planned.prerequisite or self._trained(planned.trial)
            if kept and (planned.id not in own or score_of(self.store, self.plan, planned.trial, self.current)):
                suggestion.waiting.pop(planned.id)
        if not suggestion.waiting:
            self._finish(suggestion)
        return True

    def _next_suggestion(self) -> RunningSuggestion | None:
        """From the search with the fewest suggestions so far; None where no search has one now."""
        clock = time.monotonic()
        awake = [search for search in self.searches if search.idle_until <= clock]
        for search in sorted(awake, key=lambda search: search.known):
            if suggestion := search.ask({running.number for running in self.running if running.search is search}):
                return suggestion
            search.idle_until = clock + PAUSE_S
        return None

    def _ready(self, suggestion: RunningSuggestion, planned: Planned) -> bool:
        """Whether all that it starts from is trained, and nobody else trains it."""
        if not all(map(self._trained, planned.trial.prerequisites.values())):
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

    def _asking_for(self, trial: str) -> list[RunningSuggestion]:
        return [suggestion for suggestion in self.running if trial in suggestion.waiting]

    def expected_seconds(self, trial: str) -> float | None:
        """Nothing is known of a suggestion before it is trained."""
        return None

    def first_trials(self) -> list[Trial]:
        """The arms, in their settings, whose values are searched."""
        return [search.cell.trial for search in self.searches]

    def epoch(self, trial: str, metrics: Metrics) -> bool:
        """Hear of an epoch; return whether Optuna's pruner ends the trial, in every search that asks for it."""
        if self.pruner == "none":
            return False
        with self._guard():
            suggestions = [suggestion for suggestion in self._asking_for(trial) if trial == suggestion.trials[0].id]
            epoch, accuracy = int(metrics["epoch"]), metrics["validation_accuracy"]
            decisions = [suggestion.search.report(suggestion, epoch, accuracy) for suggestion in suggestions]
            return bool(decisions) and all(decisions) and not self._is_prerequisite(trial)

    def prunable(self, trial: str) -> list[tuple[str, int]]:
        """The searches whose suggestion a trial is, and its epochs; none where somebody needs it whole.

        Those are trials that others start from, and the arm's own values.
        """
        suggestions = self._asking_for(trial)
        if any(suggestion.is_default for suggestion in suggestions) or self._is_prerequisite(trial):
            return []
        return [(suggestion.search.cell.name, suggestion.trials[0].total_epochs) for suggestion in suggestions]

    def ended(self, trial: str, outcome: TrialOutcome) -> None:
        """Hear how a trial ended."""
        self.training.discard(trial)
        how = outcome["outcome"]
        with self._guard():
            if how == "taken":
                self.taken.add(trial)
            for suggestion in self._asking_for(trial):
                search = suggestion.search
                if how == "done":
                    self._done(suggestion, suggestion.waiting[trial])
                elif how == "pruned" and suggestion.curve:  # without: asked for since, and trained again
                    search.prune(suggestion, outcome["seconds"])
                    self.running.remove(suggestion)
                elif how == "failed":
                    refused = outcome.get("refused", False) and not suggestion.is_default
                    search.fail(suggestion, outcome.get("message") or "It failed.", refused)
                    self.running.remove(suggestion)

    def again(self, trial: str) -> None:
        """Hear that a trial ran out of memory: `next` gives it once more."""
        self.training.discard(trial)

    def _done(self, suggestion: RunningSuggestion, planned: Planned) -> None:
        if planned.prerequisite and not self._trained(planned.trial):
            return  # it was trained before anybody asked to keep what it has learnt: once more
        suggestion.waiting.pop(planned.id)
        if not suggestion.waiting:
            self._finish(suggestion)

    def _finish(self, suggestion: RunningSuggestion) -> None:
        suggestion.search.complete(suggestion)
        self.running.remove(suggestion)

    def standing(self) -> list[Standing]:
        """How each search stands."""
        with self._guard():
            return [search.in_words() for search in self.searches]

    def busy(self) -> bool:
        """Whether this driver evaluates a suggestion."""
        return bool(self.running)

    def spent(self) -> bool:
        """Whether every search has spent its budget."""
        with self._guard():
            return all(search.spent() for search in self.searches)

    def close(self) -> None:
        """Release the running suggestions: the next driver takes them over."""
        for suggestion in self.running:
            suggestion.lease.release()
        self.running.clear()


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
        before = json.loads(others["space"].iloc[-1])
        after = {key: as_json(space) for key, space in cell.space.items()}
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        what = f"the space of '{changed[0]}'" if changed else "its trials, selection, replicates, pruner or seed"
        raise ValueError(
            f"The search of arm '{cell.arm}' has changed since its {len(others)} suggestions were made ({what}): put "
            "it back, or say --new-search to begin another one beside it."
        )


def _refuse_other_data(cells: Sequence[Cell], rows: pd.DataFrame, current: Current) -> None:
    """Raise `ValueError` where a search has suggestions that were scored on other data."""
    for cell in cells:
        of_cell = rows_of(rows, cell)
        if count := len(of_cell) - len(on_current_data(of_cell, cell, current)):
            raise ValueError(
                f"The data of the search of arm '{cell.arm}' have changed since {count} of its suggestions were made, "
                "and new ones cannot be compared with them: put the data back, begin another search with "
                "--new-search --search-seed N, or use another --storage."
            )
