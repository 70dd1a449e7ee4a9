"""Searches without Ray: what is suggested, remembered, taken over, counted and confirmed.

Training is replaced by rows whose validation accuracy is a known function of the values searched; tests with real
training, workers and kills are in `test_search_on_ray.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lnl import Choice, Contrast, Integer, Noise, Panel, Preset, Search, Study, Trial, Uniform, Validation
from lnl.search.confirm import confirmed, importances
from lnl.search.optuna_objects import open_storage, seed_of
from lnl.search.rows import all_rows, rows_of
from lnl.search.searches import Searches
from lnl.storage.leases import leases
from lnl.storage.objects import StorageError
from lnl.storage.schema import TABLES
from lnl.storage.store import Store
from lnl.storage.tables import write_rows
from lnl.study.parts import SEARCH_REPLICATES
from lnl.study.plan import Plan, Planned
from lnl.trial.provenance import Current
from lnl.trial.trained import DIVERGED, save_trained

ROOT = Path(__file__).parents[2]
SPACE = {"method.lambda_mixmatch": Uniform(0.1, 10, log=True), "method.temperature": Uniform(0.1, 1)}
BASE = Trial(
    method="robmix",
    dataset="digits",
    network="small_convnet",
    labels=50,
    noise=Noise("symmetric", 0.4),
    validation=Validation(images=200, labels="noisy"),
    epochs=3,
)


def declare(search: Search | None = None, **fields: Any) -> Study:
    settings: dict[str, Any] = {
        "name": "searched",
        "question": "Does the search lose anything?",
        "base": BASE,
        "arms": {"full": {}, "scaled": {"method.head_gradient": "scale"}},
        "replicates": 2,
        "search": search or Search(suggestions=6, space=SPACE),
    }
    return Study(**{**settings, **fields})


def score(trial: Trial) -> float:
    """Best at temperature 0.3."""
    return 0.9 - (trial.method.temperature - 0.3) ** 2  # type: ignore[attr-defined]


def train(store: Store, plan: Plan, planned: Planned, accuracy: float | None) -> None:
    """The rows of a trial with this validation accuracy in its last epoch; None: it diverged."""
    key = {"trial": planned.id, "attempt": store.next_attempt(plan.study, planned.id)}
    row = {
        **key,
        "arm": planned.arm,
        "replicate": planned.trial.replicate,
        "preset": plan.preset,
        "search": planned.search,
        "suggestion": planned.suggestion,
        "status": "failed" if accuracy is None else "ok",
        "failure_class": "nan" if accuracy is None else None,
        "classes": 4,
        "epochs_done": 3,
        "seconds": 2.0 + planned.trial.replicate % 10,
        "code_hash": Current().sources(planned.trial).code_hash,
    }
    values = [] if accuracy is None else [0.1, 0.99, accuracy]
    curve = [
        {**key, "epoch": epoch, "step": epoch, "split": "validation", "metric": "accuracy", "value": value}
        for epoch, value in enumerate(values, 1)
    ]
    store.write_attempt(plan.study, row, curve)


def evaluate(
    plan: Plan, store: Store, function: Callable[[Trial], float | None] = score, capacity: int = 1, **options: Any
) -> list[Planned]:
    """Run the searches of a plan here, one trial after the other; returns the trials in their order."""
    searches = Searches(plan, store, **options)
    done = []
    while planned := searches.next(capacity):
        train(store, plan, planned, function(planned.trial))
        done.append(planned)
        searches.ended(planned.id, {"outcome": "done"})
    assert searches.spent() and not searches.busy()
    return done


def suggestions(plan: Plan, store: Store, place: int = 0) -> pd.DataFrame:
    rows = rows_of(all_rows(store, plan.study), plan.cells[place])
    values = [None if one is None else list(one) for one in rows["values"]]
    return rows.assign(params=rows["params"].map(json.loads), values=values)


def optuna_trials(plan: Plan, store: Store, place: int = 0) -> list[optuna.trial.FrozenTrial]:
    name = f"{plan.cells[place].name}@{store.identity()[:8]}"
    return optuna.load_study(study_name=name, storage=open_storage(None, store.root)).get_trials()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


# ---------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.slow
def test_every_arm_gets_the_same_budget_its_own_values_first(store: Store) -> None:
    plan = declare().plan()
    trained = evaluate(plan, store)
    assert len(trained) == 12 and all(one.trial.replicate == SEARCH_REPLICATES for one in trained)
    for place, cell in enumerate(plan.cells):
        rows = suggestions(plan, store, place)
        assert rows["number"].tolist() == list(range(6)) and (rows["state"] == "complete").all()
        assert rows["params"][0] == cell.default == {"method.lambda_mixmatch": 1.0, "method.temperature": 0.5}
        assert len({json.dumps(params) for params in rows["params"]}) == 6
        for params, values in zip(rows["params"], rows["values"], strict=True):
            assert values == [pytest.approx(0.9 - (params["method.temperature"] - 0.3) ** 2)]
        mine = [one for one in trained if one.search == cell.name]
        assert [one.suggestion for one in mine] == list(range(6)) and {one.arm for one in mine} == {cell.searched_arm}
    states = [trial.state.name for place in (0, 1) for trial in optuna_trials(plan, store, place)]
    assert states == ["COMPLETE"] * 12
    assert not list((store.root / "leases").rglob("*.json"))


@pytest.mark.slow
def test_a_larger_budget_goes_on_and_a_smaller_one_counts_the_first(store: Store) -> None:
    study = declare()
    evaluate(study.plan(), store)
    before = suggestions(study.plan(), store)
    assert evaluate(study.plan(), store) == []
    larger = study.plan(search={"suggestions": 9})
    assert len(evaluate(larger, store)) == 6
    pd.testing.assert_frame_equal(suggestions(larger, store).head(6), before)
    best = [confirmed(study.plan(search={"suggestions": n}), store).record.cells[0] for n in (1, 9)]
    assert best[0].winner.number == 0 and best[0].finished == 1
    assert list(best[1].winner.values) == max(suggestions(larger, store)["values"])


@pytest.mark.slow
def test_one_driver_suggests_what_plain_optuna_suggests(store: Store) -> None:
    plan = declare(Search(suggestions=25, space=SPACE, seed=3), arms={"full": {}}).plan()
    evaluate(plan, store)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("method.lambda_mixmatch", 0.1, 10, log=True)
        return 0.9 - (trial.suggest_float("method.temperature", 0.1, 1) - 0.3) ** 2

    plain = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed_of(plan.cells[0], 3))
    )
    plain.enqueue_trial(plan.cells[0].default)
    plain.optimize(objective, n_trials=25)
    assert suggestions(plan, store)["params"].tolist() == [trial.params for trial in plain.trials]
    assert suggestions(plan, store)["values"].tolist() == [trial.values for trial in plain.trials]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes", "gp", "nsga2"])
def test_every_sampler_goes_on_after_a_driver_without_repeating_itself(sampler: str, store: Store) -> None:
    study = declare(Search(suggestions=5, space=SPACE, samplers=(sampler,)), arms={"full": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for budget in (5, 10, 14):
            evaluate(study.plan(search={"suggestions": budget}), store)
    rows = suggestions(study.plan(), store)
    assert len({json.dumps(params) for params in rows["params"]}) == 14, "a sampler repeats its draws"


def test_several_samplers_are_searches_of_their_own_with_one_default(store: Store) -> None:
    plan = declare(Search(suggestions=4, space=SPACE, samplers=("tpe", "random")), arms={"full": {}}).plan()
    trained = evaluate(plan, store)
    assert len(trained) == 7, "the arm's own values are trained once"
    assert [len(suggestions(plan, store, place)) for place in (0, 1)] == [4, 4]


# ------------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize(
    ("selection", "expected"), [("last", 0.6), ("last10", (0.1 + 0.99 + 0.6) / 3), ("val_selected", 0.99)]
)
def test_the_selection_rule_is_applied_to_validation(selection: Any, expected: float, store: Store) -> None:
    plan = declare(Search(suggestions=1, space=SPACE, selection=selection), arms={"full": {}}).plan()
    evaluate(plan, store, lambda trial: 0.6)
    assert suggestions(plan, store)["values"][0] == [pytest.approx(expected)]


def test_a_suggestion_is_the_mean_over_its_replicates_and_divergence_counts_as_chance(store: Store) -> None:
    plan = declare(Search(suggestions=2, space=SPACE, replicates=3), arms={"full": {}}).plan()
    by_replicate = {1000: 0.5, 1001: None, 1002: 0.8}
    trained = evaluate(plan, store, lambda trial: by_replicate[trial.replicate], capacity=2)
    assert len(trained) == 6
    rows, _ = store.read("suggestions", plan.study)
    chance = 1 / 4  # of the four classes in the rows
    for _, row in rows.iterrows():
        assert list(row["values"]) == [pytest.approx((0.5 + chance + 0.8) / 3)] and row["diverged"] == 1
        assert row["seconds"] == 2.0 + 3.0 + 4.0 and row["epochs"] == 9 and len(row["trials"]) == 3


def test_two_objectives(store: Store) -> None:
    plan = declare(Search(suggestions=5, space=SPACE, objectives=("accuracy", "seconds")), arms={"full": {}}).plan()
    evaluate(plan, store)
    rows = suggestions(plan, store)
    assert all(len(values) == 2 and values[1] == 2.0 for values in rows["values"])
    found = confirmed(plan, store).record.cells[0].winner
    assert found.values[0] == max(values[0] for values in rows["values"])


# ----------------------------------------------------------------------------------------------- conditional spaces


@pytest.mark.slow
def test_a_conditional_field_is_suggested_only_where_it_matters(store: Store) -> None:
    space = {
        "method.head_gradient": Choice(("flow", "scale")),
        "method.gradient_scale": Uniform(0.05, 10, log=True, when={"method.head_gradient": ("scale",)}),
        "method.contrastive_temperature": Uniform(0.05, 1, when={"method.topology": ("joint_two_head",)}),
        "method.views": Integer(1, 3),
    }
    arms = {"full": {}, "one_head": {"method.topology": "mixmatch_only"}}
    plan = declare(Search(suggestions=16, space=space), arms=arms).plan()
    evaluate(plan, store)
    for params in suggestions(plan, store)["params"]:
        assert ("method.gradient_scale" in params) == (params["method.head_gradient"] == "scale")
        assert "method.contrastive_temperature" in params
    assert {params["method.head_gradient"] for params in suggestions(plan, store)["params"]} == {"flow", "scale"}
    assert all("method.contrastive_temperature" not in one for one in suggestions(plan, store, 1)["params"])
    assert "method.contrastive_temperature" not in plan.record.cells[1].space


@pytest.mark.slow
def test_values_that_cannot_stand_together_fail_and_do_not_count(store: Store) -> None:
    space = {"method.views": Choice((2, 1, 3)), "method.consistency_weight": Uniform(1.0, 50.0)}
    base = BASE.override({"method": "ieg", "probe": 50})  # one view is consistent with nothing, says IEG's Config
    study = declare(Search(suggestions=8, space=space, samplers=("random",)), base=base, arms={"full": {}})
    evaluate(study.plan(), store, lambda trial: 0.5)
    rows, _ = store.read("suggestions", "searched")
    failed = rows[rows["state"] == "failed"]
    assert len(failed) > 0 and failed["message"].str.contains("one view").all()
    assert (rows["state"] == "complete").sum() == 8, "others take their place"
    assert evaluate(study.plan(), store) == [] and len(store.read("suggestions", "searched")[0]) == len(rows)


def test_a_search_in_which_everything_is_refused_ends(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    searches = Searches(plan, store)
    while planned := searches.next(1):
        outcome = {"outcome": "failed", "refused": True, "message": "Class 3 is not in the probe."}
        searches.ended(planned.id, outcome)
    assert searches.spent() and searches.searches[0].last_failure == "Class 3 is not in the probe."
    rows = rows_of(all_rows(store, plan.study), plan.cells[0])
    assert rows["refused"].tolist() == [False] + [True] * 6, "own values are never: something else is wrong then"
    assert confirmed(plan, store).record.cells[0].winner is None


# --------------------------------------------------------------------------------------- killed, lost, made again


@pytest.mark.slow
def test_what_a_lost_driver_held_is_taken_over_with_the_same_values(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.search.test_search import *
store, plan = Store(Path({str(store.root)!r})), declare(arms={{"full": {{}}}}).plan()
searches = Searches(plan, store)
first = searches.next(3)
train(store, plan, first, score(first.trial))
searches.ended(first.id, {{"outcome": "done"}})
print(*[searches.next(3).id for _ in range(3)], flush=True)
os._exit(9)
"""
    lost = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert lost.returncode == 9, lost.stderr
    held = lost.stdout.split()
    running = [trial for trial in optuna_trials(plan, store) if trial.state.name == "RUNNING"]
    assert [trial.number for trial in running] == [1, 2, 3]

    trained = evaluate(plan, store)
    assert [planned.id for planned in trained][:3] == held
    rows = suggestions(plan, store)
    assert [rows["params"][trial.number] for trial in running] == [trial.params for trial in running]
    assert rows["number"].tolist() == list(range(6))
    assert [trial.state.name for trial in optuna_trials(plan, store)] == ["COMPLETE"] * 6
    assert not leases(store)


def test_a_row_without_optunas_knowledge_is_told_and_not_evaluated_again(store: Store, monkeypatch: Any) -> None:
    plan = declare(arms={"full": {}}).plan()
    searches = Searches(plan, store)
    first = searches.next(1)
    assert first is not None
    train(store, plan, first, 0.7)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "tell", interrupt)
        searches.ended(first.id, {"outcome": "done"})
    searches.close()
    assert [trial.state.name for trial in optuna_trials(plan, store)] == ["RUNNING"]
    assert first.id not in [planned.id for planned in evaluate(plan, store)]
    assert optuna_trials(plan, store)[0].values == [0.7]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_deleted_storage_is_made_again_from_the_results(sampler: str, store: Store) -> None:
    study = declare(Search(suggestions=6, space=SPACE, samplers=(sampler,)))
    plan = study.plan()
    evaluate(plan, store)
    before = [optuna_trials(plan, store, place) for place in (0, 1)]
    (store.root / "optuna.journal").unlink()
    searches = Searches(plan, store)
    assert [one.rebuilt for one in searches.standing()] == [6, 6] and searches.next(2) is None
    for place in (0, 1):
        after = optuna_trials(plan, store, place)
        assert [(t.number, t.state, t.params, t.values) for t in after] == [
            (t.number, t.state, t.params, t.values) for t in before[place]
        ]
    assert len(evaluate(study.plan(search={"suggestions": 8}), store)) == 4


def test_an_older_copy_of_the_storage_gets_what_it_lacks(store: Store) -> None:
    study = declare(arms={"full": {}})
    searches = Searches(study.plan(), store)
    running = searches.next(1)
    assert running is not None
    older = (store.root / "optuna.journal").read_bytes()
    train(store, study.plan(), running, 0.5)
    searches.ended(running.id, {"outcome": "done"})
    evaluate(study.plan(), store)
    before = suggestions(study.plan(), store)
    (store.root / "optuna.journal").write_bytes(older)
    assert evaluate(study.plan(), store) == []
    trials = optuna_trials(study.plan(), store)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert [trial.params for trial in trials] == before["params"].tolist()
    assert [trial.values for trial in trials] == before["values"].tolist()


def test_a_suggestion_that_ran_out_of_memory_goes_on_in_the_same_run(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    searches = Searches(plan, store)
    first, second = searches.next(2), searches.next(2)
    assert first is not None and second is not None and searches.next(2) is None
    searches.again(first.id)
    assert searches.next(2) == first and searches.next(2) is None
    for planned in (second, first):
        train(store, plan, planned, 0.5)
        searches.ended(planned.id, {"outcome": "done"})
    while planned := searches.next(1):
        train(store, plan, planned, 0.5)
        searches.ended(planned.id, {"outcome": "done"})
    assert searches.spent() and {trial.state.name for trial in optuna_trials(plan, store)} == {"COMPLETE"}


def test_accidents_are_suggested_again_by_the_next_run(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    searches = Searches(plan, store)
    failed = {}
    while planned := searches.next(1):
        if planned.suggestion in (1, 4):
            failed[planned.suggestion] = planned.id
            searches.ended(planned.id, {"outcome": "failed", "message": "Out of memory."})
        else:
            train(store, plan, planned, 0.5)
            searches.ended(planned.id, {"outcome": "done"})
    assert len(failed) == 2 and searches.spent() and searches.searches[0].last_failure == "Out of memory."
    assert confirmed(plan, store).record.cells[0].winner is None, "the budget is not spent"
    assert {planned.id for planned in evaluate(plan, store)} == set(failed.values())
    (store.root / "optuna.journal").unlink()
    assert evaluate(plan, store) == [], "they have succeeded since, also for a storage that is made again"
    states = [trial.state.name for trial in optuna_trials(plan, store)]
    assert (states.count("COMPLETE"), states.count("FAIL"), len(states)) == (6, 2, 8)
    assert confirmed(plan, store).record.cells[0].winner is not None


@pytest.mark.slow
def test_two_drivers_share_a_budget(store: Store) -> None:
    plan = declare(Search(suggestions=20, space=SPACE, samplers=("random",)), arms={"full": {}}).plan()
    drivers = [Searches(plan, store), Searches(plan, store)]
    trained: list[str] = []
    while busy := [pair for pair in ((driver, driver.next(1)) for driver in drivers) if pair[1]]:
        for driver, planned in busy:
            assert planned is not None
            train(store, plan, planned, score(planned.trial))
            trained.append(planned.id)
            driver.ended(planned.id, {"outcome": "done"})
    rows = suggestions(plan, store)
    assert rows["number"].tolist() == list(range(20)) and len(set(trained)) == len(trained) == 20
    assert all(driver.spent() for driver in drivers)


# ---------------------------------------------------------------------------------------------------- prerequisites


def test_what_a_suggestion_starts_from_is_trained_once_and_first(store: Store) -> None:
    arms = {"propagated": {"method": "label_propagation", "init_from": {"method": "simclr", "epochs": 1}}}
    plan = declare(Search(suggestions=3, space={"method.k": Integer(5, 50)}), arms=arms).plan()
    searches = Searches(plan, store)
    before = searches.next(4)
    assert before is not None and before.prerequisite and before.trial.method_name == "simclr" and before.search is None
    assert searches.next(4) is None, "all wait for it"
    save_trained(store.trained, before.trial, {}, Current())
    searches.ended(before.id, {"outcome": "done"})
    path = Current().trained_path(store.trained, before.trial)
    path.write_bytes(path.read_bytes()[:-1])
    assert searches.next(4) is None, "what is damaged is not started from"
    again = searches.next(4)
    assert again is not None and (again.id, again.prerequisite) == (before.id, True), "but is trained again"
    save_trained(store.trained, before.trial, {}, Current())
    searches.ended(before.id, {"outcome": "done"})
    rest = [searches.next(4), searches.next(4), searches.next(4)]
    assert [one.suggestion for one in rest if one] == [0, 1, 2]


def test_what_starts_from_a_prerequisite_that_diverged_diverges_and_counts(store: Store) -> None:
    """Its worker keeps that it diverged where what it has learnt would be: then what waits for it ends, too."""
    arms = {"propagated": {"method": "label_propagation", "init_from": {"method": "simclr", "epochs": 1}}}
    plan = declare(Search(suggestions=2, space={"method.k": Integer(5, 50)}), arms=arms).plan()
    searches = Searches(plan, store)
    before = searches.next(4)
    assert before is not None and before.prerequisite
    save_trained(store.trained, before.trial, {DIVERGED: "loss was no finite number"}, Current())
    searches.ended(before.id, {"outcome": "done", "failure": "nan"})
    while planned := searches.next(4):
        train(store, plan, planned, None)
        searches.ended(planned.id, {"outcome": "done", "failure": "nan"})
    rows, _ = store.read("suggestions", plan.study)
    assert rows["state"].tolist() == ["complete"] * 2 and rows["diverged"].tolist() == [1, 1]
    assert [list(values) for values in rows["values"]] == [[0.25]] * 2


def test_a_trial_that_another_suggestion_starts_from_is_kept(store: Store) -> None:
    source = {"method": "simclr", "epochs": 3, "noise.kind": "none", "noise.rate": 0.0}
    arms = {"simclr": source, "propagated": {"method": "label_propagation", "init_from": {"method": "simclr"}}}
    space = {"method.temperature": Uniform(0.005, 1)}
    plan = declare(Search(suggestions=1, space=space, pruner="median"), arms=arms).plan()
    searches = Searches(plan, store)
    first = searches.next(1)
    assert first is not None and not first.prerequisite and first.trial.method_name == "simclr"
    waiting = searches.next(2)
    assert waiting is None, "the other waits for it"
    assert searches.prunable(first.id) == []
    train(store, plan, first, 0.5)
    searches.ended(first.id, {"outcome": "done"})
    again = searches.next(2)
    assert again is not None and again.id == first.id and again.prerequisite, "what it has learnt was not kept"


@pytest.mark.parametrize("late", ["failed", "done"])
def test_of_two_drivers_that_hold_a_suggestion_the_first_to_end_it_wins(late: str, store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    slow = Searches(plan, store)
    first = slow.next(1)
    assert first is not None
    for lease in (store.root / "leases").rglob("*.json"):  # silent for a minute on another host: the lease lapses
        lease.unlink()
    other = evaluate(plan, store)
    assert other[0].id == first.id
    before = suggestions(plan, store)
    slow.ended(first.id, {"outcome": late, "message": "Out of memory."})
    pd.testing.assert_frame_equal(suggestions(plan, store), before)
    assert [trial.state.name for trial in optuna_trials(plan, store)] == ["COMPLETE"] * 6


def test_a_removed_row_is_evaluated_again_from_its_trials(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    evaluate(plan, store)
    before = suggestions(plan, store)
    store.suggestion_path(plan.study, plan.cells[0].name, 3).unlink()
    assert confirmed(plan, store).record.cells[0].finished == 5
    assert evaluate(plan, store) == [], "its trial is there"
    after = suggestions(plan, store)
    assert after["number"].tolist() == [0, 1, 2, 4, 5, 6]
    assert (after["params"][5], after["values"][5]) == (before["params"][3], before["values"][3])


def test_a_rebuild_that_was_interrupted_goes_on(store: Store, monkeypatch: Any) -> None:
    plan = declare(arms={"full": {}}).plan()
    evaluate(plan, store)
    (store.root / "optuna.journal").unlink()
    added = optuna.Study.add_trial
    left = iter([True, True, True])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "add_trial", lambda *a: added(*a) if next(left, False) else interrupt())
        Searches(plan, store)
    assert [one.rebuilt for one in Searches(plan, store).standing()] == [3]
    assert [trial.params for trial in optuna_trials(plan, store)] == suggestions(plan, store)["params"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes", "gp", "nsga2"])
def test_no_sampler_repeats_itself_after_a_rebuild(sampler: str, store: Store) -> None:
    study = declare(Search(suggestions=6, space=SPACE, samplers=(sampler,)), arms={"full": {}})
    evaluate(study.plan(), store)
    (store.root / "optuna.journal").unlink()
    assert len(evaluate(study.plan(search={"suggestions": 12}), store)) == 6


def test_drivers_with_different_storages_are_told(store: Store, tmp_path: Path) -> None:
    plan = declare(arms={"full": {}}).plan()
    first = Searches(plan, store)
    assert first.next(1) is not None
    other = Searches(plan, store, url=f"sqlite:///{tmp_path / 'optuna.db'}")
    with pytest.raises(StorageError, match=r"with another Optuna storage: give both the same --optuna\."):
        other.next(1)


def test_results_of_other_code_are_not_taken_for_todays(store: Store) -> None:
    plan = declare(Search(suggestions=1, space=SPACE), arms={"full": {}}).plan()
    searches = Searches(plan, store)
    planned = searches.next(1)
    assert planned is not None
    train(store, plan, planned, 0.9)
    path = next((store.root / "trials").rglob("*.parquet"))
    row = pq.ParquetFile(path).read().to_pylist()[0]
    path.unlink()
    write_rows(path, TABLES["trials"], [{**row, "code_hash": "older"}])
    searches.close()
    assert [one.id for one in evaluate(plan, store)] == [planned.id]


def test_own_values_that_failed_are_suggested_again_and_never_pruned(store: Store) -> None:
    plan = declare(Search(suggestions=8, space=SPACE, samplers=("random",), pruner="median"), arms={"full": {}}).plan()
    searches = Searches(plan, store)
    first = searches.next(1)
    assert first is not None
    searches.ended(first.id, {"outcome": "failed", "message": "Out of memory."})
    while planned := searches.next(1):
        train(store, plan, planned, 0.5)
        searches.ended(planned.id, {"outcome": "done"})
    (store.root / "optuna.journal").unlink()
    again = Searches(plan, store)
    own = again.next(1)
    assert own is not None and own.id == first.id and own.suggestion == 8
    assert not any(again.epoch(own.id, {"epoch": epoch, "validation_accuracy": 0.0}) for epoch in (1, 2))
    assert again.prunable(own.id) == []


def test_own_values_that_were_running_when_the_storage_was_lost_are_suggested_again(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    searches = Searches(plan, store)
    first, second = searches.next(2), searches.next(2)
    assert first is not None and second is not None
    train(store, plan, second, 0.5)
    searches.ended(second.id, {"outcome": "done"})
    searches.close()
    (store.root / "optuna.journal").unlink()
    assert first.id in [planned.id for planned in evaluate(plan, store)]


def test_a_searched_arm_that_is_another_arm_is_run_with_its_own_name(store: Store) -> None:
    space = {"method.head_gradient": Choice(("flow", "scale"))}
    plan = declare(Search(suggestions=6, space=space, samplers=("random",), arms=("full",))).plan()
    evaluate(plan, store, lambda trial: 0.9 if trial.method.head_gradient == "scale" else 0.5)  # type: ignore[attr-defined]
    after = confirmed(plan, store)
    by_arm = {arm: {e.trial for e in after.record.trials if e.arm == arm} for arm in after.record.arms}
    assert by_arm["full_random"] == by_arm["scaled"] != by_arm["full"]
    assert after.of_arms(["full", "full_random"]) == by_arm["full"] | by_arm["scaled"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_arms_own_values_are_never_pruned(sampler: str, store: Store) -> None:
    search = Search(suggestions=8, space=SPACE, samplers=(sampler,), pruner="median")
    plan = declare(search, arms={"full": {}}).plan()
    searches = Searches(plan, store)
    pruned = []
    while planned := searches.next(1):
        value = 1 / (2 + planned.suggestion) if planned.suggestion else 0.01  # own values worst, the rest ever worse
        for epoch in (1, 2, 3):
            if searches.epoch(planned.id, {"epoch": epoch, "validation_accuracy": value}):
                searches.ended(planned.id, {"outcome": "pruned", "seconds": 1.5})
                pruned.append(planned.suggestion)
                break
        else:
            train(store, plan, planned, value)
            searches.ended(planned.id, {"outcome": "done"})
    rows = suggestions(plan, store)
    assert rows["state"].tolist() == ["pruned" if n in pruned else "complete" for n in range(8)]
    assert pruned and 0 not in pruned, "Optuna's median pruner lets five end first"
    assert confirmed(plan, store).record.cells[0].finished == 8


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"space": {"method.q": Uniform(0, 1)}},
            "The search of arm 'full' names 'method.q', which is no field of its trials.",
        ),
        (
            {"parameters": ["probe"]},
            "The search has no parameter 'probe': there are method.lambda_mixmatch, method.temperature.",
        ),
        (
            {"space": {"method.temperature": Uniform(0.6, 1)}},
            "does not hold the arm's own value of 'method.temperature', 0.5",
        ),
        ({"space": {"method.temperature": Uniform(0.1, 1, when={"method.lamda": (1,)})}}, "names 'method.lamda'"),
        (
            {"space": {"method.alpha": Uniform(0.1, 1, when={"method.views": (2,)}), "method.views": Integer(1, 3)}},
            "asks for 'method.views' too late",
        ),
        ({"space": {"method.alpha": Uniform(0.1, 1, when={"method.views": (7,)})}}, "There is nothing to search: "),
        ({"space": {"replicate": Integer(0, 5)}}, "cannot search the field 'replicate'"),
        ({"space": {"noise.rate": Uniform(0.0, 0.5)}}, "would be scored on different images or labels."),
        ({"arms": ("fulll",)}, "The search names arm 'fulll', which is not planned: there are full, scaled."),
        ({"pruner": "asha", "replicates": 2}, "a pruner follows one curve"),
        ({"pruner": "median", "objectives": ("accuracy", "seconds")}, "a pruner follows one objective"),
        ({"samplers": ["cmaes"], "objectives": ("accuracy", "seconds")}, "CMA-ES supports one objective"),
        ({"samplers": ["anneal"]}, "Search: samplers.0: Input should be 'tpe', 'random'"),
        ({"suggestions": 0}, "Search: suggestions: Input should be greater than or equal to 1"),
        ({"budget": 3}, "A search has no field 'budget': there are suggestions, "),
    ],
)
def test_impossible_searches_are_refused_in_one_sentence(search: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        declare().plan(search=search)
    assert message in str(refusal.value) and "\n" not in str(refusal.value) and str(refusal.value)[-1] in ".?"


def test_a_search_needs_validation_and_no_factor(store: Store) -> None:
    with pytest.raises(ValueError, match=r"arm 'full' has none: give the base some, such as validation\.images=200\."):
        declare(base=BASE.override({"validation": {"images": 0}})).plan()
    panel = {"p": Panel("x", ("full",), ("method.temperature",))}
    with pytest.raises(ValueError, match=r"'method\.temperature' is a factor of the study and cannot be searched"):
        declare(factors={"method.temperature": [0.5, 0.7]}, panels=panel).plan()
    with pytest.raises(ValueError, match="The searched arm 'full_tpe' has the name of another arm: rename that one"):
        declare(arms={"full": {}, "full_tpe": {"method.alpha": 0.5}}).plan()
    with pytest.raises(ValueError, match="1001 replicates are too many"):
        declare().plan(replicates=1001)


@pytest.mark.slow
def test_a_changed_space_is_refused_until_another_search_is_asked_for(store: Store) -> None:
    study = declare(arms={"full": {}})
    evaluate(study.plan(), store)
    wider = study.plan(search={"space": {**SPACE, "method.temperature": Uniform(0.05, 2)}})
    with pytest.raises(ValueError) as refusal:
        Searches(wider, store)
    assert str(refusal.value) == (
        "The search of arm 'full' has changed since its 6 suggestions were made (the space of 'method.temperature'): "
        "put it back, or say --new-search to begin another one beside it."
    )
    assert len(evaluate(wider, store, new=True)) == 5, "the arm's own values are trained already"
    assert evaluate(wider, store) == [] and evaluate(study.plan(), store) == [], "both are kept"
    with pytest.raises(ValueError, match="its trials, selection, replicates, pruner or seed"):
        Searches(study.plan(changes={"labels": 60}), store)


@pytest.mark.slow
def test_unusable_storages_are_one_sentence(store: Store) -> None:
    plan = declare().plan()
    with pytest.raises(StorageError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:9/x cannot be used") as refusal:
        Searches(plan, store, url="postgresql://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(StorageError, match=r"No driver for nosuchdb://x is installed"):
        Searches(plan, store, url="nosuchdb://x")
    for wrong in ("results", "postgresql:me:secret@127.0.0.1/x", "postgresql://me:secret@127.0.0.1:port/x"):
        with pytest.raises(ValueError, match="is not a database URL") as refusal:
            Searches(plan, store, url=wrong)
        assert "secret" not in str(refusal.value)
    with pytest.raises(StorageError) as failure:
        Searches(plan, store, url="postgresql://127.0.0.1:9/x?user=me&password=secret")
    assert "secret" not in str(failure.value)
    evaluate(plan, store)
    with open(store.root / "optuna.journal", "ab") as journal:
        journal.write(b'{"torn')
    more = declare().plan(search={"suggestions": 7})
    with pytest.raises(StorageError, match=r"is damaged: move it away and run again"):
        evaluate(more, store)
    os.rename(store.root / "optuna.journal", store.root / "damaged")
    assert len(evaluate(more, store)) == 2


@pytest.mark.slow
def test_an_sqlite_database_serves_too(store: Store, tmp_path: Path) -> None:
    plan = declare(arms={"full": {}}).plan()
    assert len(evaluate(plan, store, url=f"sqlite:///{tmp_path / 'optuna.db'}")) == 6
    assert not (store.root / "optuna.journal").exists()


# ---------------------------------------------------------------------------------------------------- confirmation


@pytest.mark.slow
def test_the_winner_becomes_an_arm_on_replicates_that_no_search_has_seen(store: Store) -> None:
    contrasts = [Contrast("scaled", against="full", direction="hurts", smallest_effect=0.01)]
    study = declare(factors={"labels": [50, 100]}, contrasts=contrasts)
    plan = study.plan()
    assert confirmed(plan, store).record.arms.keys() == {"full", "scaled"}
    evaluate(plan, store)
    after = confirmed(plan, store)
    assert list(after.record.arms) == ["full", "scaled", "full_tpe", "scaled_tpe"]
    assert all(planned.trial.replicate < 2 for planned in after.trials)
    best = max(suggestions(plan, store).to_dict("records"), key=lambda row: row["values"])
    for arm in ("full", "scaled"):
        own = [p for p in after.trials if p.arm == arm]
        searched = [p for p in after.trials if p.arm == f"{arm}_tpe"]
        assert len(own) == len(searched) == 4, "two settings, two replicates"
        assert {(p.setting, p.trial.replicate) for p in own} == {(p.setting, p.trial.replicate) for p in searched}
    for planned in (p for p in after.trials if p.arm == "full_tpe"):
        assert planned.trial.method.temperature == best["params"]["method.temperature"]  # type: ignore[attr-defined]
        assert planned.trial.noise == BASE.noise
    compared = {(c.arm, c.against, c.direction) for c in after.record.contrasts}
    assert compared == {
        ("full_tpe", "full", "any"),
        ("scaled_tpe", "scaled", "any"),
        ("scaled", "full", "hurts"),
        ("scaled_tpe", "full_tpe", "hurts"),
    }
    assert list(after.record.panels) == ["search_full", "search_scaled", "all", "all_tpe"]
    assert after.record.panels["all_tpe"].arms == ("full_tpe", "scaled_tpe")
    assert confirmed(plan, store).hash == after.hash, "the same rows give the same plan"


def test_a_search_in_every_setting_confirms_each_with_its_own(store: Store) -> None:
    study = declare(
        Search(suggestions=5, space=SPACE, settings="each"), factors={"labels": [50, 100]}, arms={"full": {}}
    )
    plan = study.plan()
    assert [cell.setting for cell in plan.cells] == ["{}", '{"labels":100}']
    evaluate(plan, store, lambda trial: score(trial) if trial.labels == 50 else 1 - score(trial))
    after = confirmed(plan, store)
    chosen = {p.setting: p.trial.method.temperature for p in after.trials if p.arm == "full_tpe"}  # type: ignore[attr-defined]
    for place, setting in enumerate(chosen):
        rows = suggestions(plan, store, place)
        best = rows.loc[rows["values"].map(lambda values: values[0]).idxmax()]
        assert chosen[setting] == best["params"]["method.temperature"]
    assert len(set(chosen.values())) == 2


def test_own_values_that_win_are_the_searched_arm(store: Store) -> None:
    plan = declare(arms={"full": {}}).plan()
    evaluate(plan, store, lambda trial: 0.5)
    after = confirmed(plan, store)
    by_arm = {arm: [e.trial for e in after.record.trials if e.arm == arm] for arm in after.record.arms}
    assert by_arm["full"] == by_arm["full_tpe"] and len(after.trials) == 2, "trained once"


@pytest.mark.slow
def test_importance_sees_the_field_that_matters(store: Store) -> None:
    plan = declare(Search(suggestions=30, space=SPACE, samplers=("random",)), arms={"full": {}}).plan()
    evaluate(plan, store)
    found = importances(rows_of(all_rows(store, plan.study), plan.cells[0]), plan.cells[0])
    assert found["method.temperature"] > 0.8 and sum(found.values()) == pytest.approx(1.0)


def test_presets_and_undeclared_searches(store: Store) -> None:
    presets = {"small": Preset(search={"suggestions": 2, "samplers": ["random"]})}
    study = declare(presets=presets)
    assert study.plan("small").record.search.suggestions == 2
    assert [cell.searched_arm for cell in study.plan("small").cells] == ["full_random", "scaled_random"]
    plain = Study(name="plain", question="?", base=BASE, replicates=1)
    assert plain.plan().search is None and plain.plan().record.search is None
    asked = plain.plan(search={"parameters": ["method.lambda_mixmatch"]})
    assert [list(cell.space) for cell in asked.cells] == [["method.lambda_mixmatch"]]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
