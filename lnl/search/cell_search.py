"""The search of one cell: what is suggested, what runs, and what Optuna was told.

`CellSearch` keeps Optuna's study and the rows of table `suggestions` in step; a `RunningSuggestion` is one that this
driver evaluates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from lnl.search.optuna_objects import make_pruner, make_sampler, seed_of
from lnl.search.rows import SUGGESTION_COLUMNS, frozen_trials, winner
from lnl.search.scores import Score, Standing, score_of
from lnl.space import Choice, Integer, as_json
from lnl.storage.leases import Lease, claim, locked
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import counting
from lnl.storage.places import canonical, now, short_hash
from lnl.storage.store import Store
from lnl.study.parts import SEARCH_REPLICATES
from lnl.study.plan import Cell, Plan, Planned, with_prerequisites
from lnl.trial.config import Trial
from lnl.trial.provenance import Current

COUNTING = (TrialState.COMPLETE, TrialState.PRUNED)  # states that count in a budget, as `outcomes.counting` has it
ENDED = (*COUNTING, TrialState.FAIL)


@dataclass
class RunningSuggestion:
    """A suggestion that this driver evaluates, whose lease it holds."""

    search: CellSearch
    number: int
    params: dict[str, Any]
    trials: tuple[Trial, ...]  # one per replicate
    lease: Lease
    asked_at: datetime
    waiting: dict[str, Planned] = field(default_factory=dict)  # id -> those, and what they start from, not yet ended
    curve: dict[int, float] = field(default_factory=dict)  # epoch -> validation accuracy, where a pruner looks

    @property
    def is_default(self) -> bool:
        """Whether its values are the arm's own."""
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
        known = len(self.study.get_trials(deepcopy=False))
        missing = frozen_trials(self.rows, self.cell)[known:]
        for trial in missing:
            self.study.add_trial(trial)
        default = self.cell.default
        if not any(_params(trial) == default for trial in self.study.get_trials(deepcopy=False)):
            self.study.enqueue_trial(default)
        return len(missing)

    def _seed(self) -> int:
        """A seed for this driver's sampler, which no other driver has, nor one from before a rebuild."""
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
        """Enqueue values that failed by accident, and those whose row is lost; returns the numbers of the latter."""
        trials = self.study.get_trials(deepcopy=False)
        lost = self._lost(trials)
        kept = {canonical(_params(trial)) for trial in trials if trial.number not in lost and not _has_failed(trial)}
        again = lost | self._failed_by_accident()
        for trial in trials:
            if trial.number in again and trial.params and (text := canonical(trial.params)) not in kept:
                self.study.enqueue_trial(trial.params)
                kept.add(text)
        return lost

    def _lost(self, trials: Sequence[FrozenTrial]) -> set[int]:
        """The numbers of suggestions that Optuna has as ended, and that have no row."""
        ended = {trial.number for trial in trials if trial.state in COUNTING}
        without_row = ended - set(self.rows["number"])
        return {number for number in without_row if self._row(number) is None}  # some may have got one since

    def _failed_by_accident(self) -> set[int]:
        refused = self.rows["refused"].map(lambda value: pd.notna(value) and bool(value)).astype(bool)
        return set(self.rows.loc[(self.rows["state"] == "failed") & ~refused, "number"])

    def standing(self) -> dict[str, int]:
        """How many suggestions are complete, pruned, running (anybody's) and failed in this run."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False) if trial.number not in self.lost]
        names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}
        standing = {**{name: states.count(state) for name, state in names.items()}, "failed": self.failed_here}
        self.known = sum(standing.values())
        return standing

    def in_words(self) -> Standing:
        """How the search stands, for people."""
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

    def ask(self, running: set[int]) -> RunningSuggestion | None:
        """A suggestion of a driver that died, else one more if the budget allows; None where there is nothing to do.

        `running`: the numbers of those that this driver evaluates already.
        """
        with self._locked():
            for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if frozen.number not in running and (lease := self._claim(frozen.number)):
                    if suggestion := self._take(optuna.trial.Trial(self.study, frozen._trial_id), lease):
                        return suggestion
            while sum(self.standing().values()) < self.settings.suggestions and not self._hopeless():
                trial = self.study.ask()
                self.known += 1
                if (lease := self._claim(trial.number)) is None:
                    raise StorageError(
                        f"Another driver evaluates suggestion {trial.number} of {self.cell.name} with another Optuna "
                        "storage: give both the same --optuna."
                    )
                if suggestion := self._take(trial, lease):
                    return suggestion
            return None

    def _claim(self, number: int) -> Lease | None:
        lease, _ = claim(self.store, self.plan.study, f"search-{short_hash(self.cell.name)}-{number}")
        return lease

    def _take(self, trial: optuna.trial.Trial, lease: Lease) -> RunningSuggestion | None:
        """The suggestion with all its values, held by this process; None where it has ended, or is refused."""
        lease.start()
        params: dict[str, Any] = {}
        for key in self.cell.space:
            if self.cell.holds(key, params):
                params[key] = self._suggest(trial, key)
        curve = dict(self._frozen(trial.number).intermediate_values)
        suggestion = RunningSuggestion(self, trial.number, params, (), lease, now(), curve=curve)
        if (row := self._row(trial.number)) is not None:  # its driver died between writing the row and telling Optuna
            self._tell(trial.number, row)
            lease.release()
            return None
        try:
            trial_with_values = self.cell.trial.override(params)
        except ValueError as error:  # values that cannot stand beside each other
            self._end(suggestion, "failed", message=str(error), refused=True)
            return None
        replicates = range(SEARCH_REPLICATES, SEARCH_REPLICATES + self.settings.replicates)
        suggestion.trials = tuple(trial_with_values.override({"replicate": replicate}) for replicate in replicates)
        declared = [
            Planned(
                replicate, self.cell.searched_arm, self.cell.setting, search=self.cell.name, suggestion=trial.number
            )
            for replicate in suggestion.trials
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
        """The row of a suggestion; None where there is no readable one."""
        path = self.store.suggestion_path(self.plan.study, self.cell.name, number)
        rows, _ = self.store.read("suggestions", self.plan.study, SUGGESTION_COLUMNS, files=path.stem)
        return rows.iloc[0].to_dict() if len(rows) else None  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------------ what came of it

    def report(self, suggestion: RunningSuggestion, epoch: int, accuracy: float) -> bool:
        """Tell the pruner of one more epoch; return whether it prunes the suggestion: never the arm's own values."""
        if epoch in suggestion.curve:  # a trial that goes on from a checkpoint comes to it again
            return False
        suggestion.curve[epoch] = accuracy
        frozen = self._frozen(suggestion.number)
        if frozen.state.is_finished():
            return False
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        trial.report(accuracy, epoch)
        return not suggestion.is_default and epoch < suggestion.trials[0].total_epochs and trial.should_prune()

    def complete(self, suggestion: RunningSuggestion) -> None:
        """Close a suggestion with the means over its replicates' rows."""
        scores: list[Score] = []
        for trial in suggestion.trials:
            score = score_of(self.store, self.plan, trial, self.current)
            if score is None:
                self.fail(suggestion, f"The results of trial {trial.id} cannot be read: see `lnl doctor`.")
                return
            scores.append(score)
        values = [float(np.mean([score.accuracy for score in scores]))]
        if len(self.settings.objectives) > 1:
            values.append(float(np.mean([score.seconds for score in scores])))
        self.close(
            suggestion,
            "complete",
            values=values,
            diverged=sum(score.diverged for score in scores),
            epochs=sum(score.epochs for score in scores),
            seconds=sum(score.seconds for score in scores),
        )

    def prune(self, suggestion: RunningSuggestion, seconds: float) -> None:
        """Close a suggestion that its pruner has ended after so many seconds of training."""
        last = max(suggestion.curve)
        self.close(suggestion, "pruned", values=[suggestion.curve[last]], epochs=last, seconds=seconds)

    def fail(self, suggestion: RunningSuggestion, message: str, refused: bool = False) -> None:
        """Close a suggestion that failed; `refused`: its values cannot be trained with, those of others may."""
        self.close(suggestion, "failed", message=message, refused=refused)

    def close(self, suggestion: RunningSuggestion, state: str, **result: Any) -> None:
        """Close a suggestion; `result`: columns of its row."""
        with self._locked():
            self._end(suggestion, state, **result)

    def _end(self, suggestion: RunningSuggestion, state: str, **result: Any) -> None:
        """Write a suggestion's row, then tell Optuna, then release it.  Another driver may have been first."""
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
        known = {name: row.get(name) for name in SUGGESTION_COLUMNS}
        self.rows = pd.DataFrame([*self.rows.to_dict("records"), known], columns=SUGGESTION_COLUMNS)
        if row["state"] == "failed":
            self.last_failure = row["message"]
            refused = pd.notna(row["refused"]) and bool(row["refused"])
            self.refused_here += refused
            self.failed_here += not refused
        self._tell(number, row)
        suggestion.lease.release()

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


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """The values of one of Optuna's trials, also of one that is enqueued, or was lost while it was."""
    return dict(trial.system_attrs.get("fixed_params", trial.params))


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL
