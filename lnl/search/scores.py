"""How well a suggestion did, and how a search stands.

`score_of` is what one trial contributes to its suggestion; `Standing` is what a display shows of a search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lnl.storage.currency import latest
from lnl.storage.outcomes import accuracies, diverged, is_outcome, selection_rules
from lnl.storage.store import Store
from lnl.study.plan import Plan
from lnl.trial.config import Trial
from lnl.trial.provenance import Current


class Score(NamedTuple):
    """What one trial contributes to the values of its suggestion."""

    accuracy: float  # on validation images, under the selection rule
    seconds: float
    epochs: int
    diverged: bool


def score_of(store: Store, plan: Plan, trial: Trial, current: Current) -> Score | None:
    """The score of a trial; None where it is not finished by current code on current data, or its rows are lost.

    Its accuracy is the study's selection rule applied to the validation curve (`val_selected`: its maximum).
    """
    rows, _ = store.read("trials", plan.study, files=f"{trial.id}-*")
    final = latest(rows, {trial.id: current.sources(trial)})
    if final.empty or final["stale"].any() or not is_outcome(final).all():
        return None
    row = final.iloc[0]
    seconds, epochs = float(row["seconds"]), int(row["epochs_done"])
    if diverged(final).all():
        chance = float(accuracies(final, plan.record.require_search().selection).iloc[0])
        return Score(chance, seconds, epochs, diverged=True)
    of_validation = [("split", "=", "validation"), ("metric", "=", "accuracy"), ("attempt", "=", int(row["attempt"]))]
    curve, _ = store.read("epochs", plan.study, ["epoch", "value"], of_validation, files=f"{trial.id}-*")
    if curve.empty:
        return None
    scores = curve.sort_values("epoch")["value"].tolist()
    rules = selection_rules(scores, scores)
    accuracy = rules[f"accuracy_{plan.record.require_search().selection}"]
    return None if accuracy is None else Score(float(accuracy), seconds, epochs, diverged=False)


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
