"""Studies: which trials a declaration means, in which order, and how they stand in a results folder."""

import importlib.util
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lnl.storage.leases import claim
from lnl.storage.places import canonical
from lnl.storage.plan_record import read_record, read_records
from lnl.storage.store import Store
from lnl.study.parts import Contrast, Panel, Preset
from lnl.study.plan import plan_row
from lnl.study.status import by_state, reconcile
from lnl.study.study import Study
from lnl.training.task import Noise
from lnl.trial.code_hash import code_hash
from lnl.trial.config import Trial

FOLDER = Path(__file__).parents[2] / "studies"


def declare(**changes):
    """Two panels that share trials: 16 + 6 - 4 of them."""
    settings = {
        "name": "small",
        "question": "Does counting work?",
        "base": Trial(method="supervised", dataset="digits", labels=50, noise=Noise("symmetric", 0.4)),
        "arms": {"plain": {}, "strong": {"method.augmentation": "strong"}, "mixed": {"method": "mixmatch"}},
        "factors": {"labels": [50, 100], "noise.rate": [0.2, 0.4]},
        "panels": {
            "noise": Panel("Noise by labels", ("plain", "strong"), ("labels", "noise.rate")),
            "methods": Panel("Methods", ("plain", "strong", "mixed")),
        },
        "replicates": 2,
        "contrasts": [Contrast("strong", against="plain", smallest_effect=0.01)],
        "presets": {
            "half": Preset(factors={"labels": [50]}, replicates=1),
            "methods": Preset(panels=("methods",)),
            "other": Preset(base={"labels": 100, "epochs": 7}, arms={"mixed": {"method.views": 3}}),
        },
    }
    return Study(**{**settings, **changes})


def rows(plan):
    return [(planned.arm, json.loads(planned.setting), planned.trial.replicate) for planned in plan.trials]


def ids(plan):
    return {planned.id for planned in plan.trials}


# --------------------------------------------------------------------------------------------------------- the trials


def test_panels_arms_and_factors_make_these_trials_in_this_order():
    plan = declare().plan()
    of_one_replicate = [
        ("plain", {"noise.rate": 0.2}),
        ("strong", {"noise.rate": 0.2}),
        ("plain", {}),
        ("strong", {}),
        ("plain", {"labels": 100, "noise.rate": 0.2}),
        ("strong", {"labels": 100, "noise.rate": 0.2}),
        ("plain", {"labels": 100}),
        ("strong", {"labels": 100}),
        ("mixed", {}),  # the other two of this panel are in the first one already
    ]
    assert rows(plan) == [(*row, replicate) for replicate in (0, 1) for row in of_one_replicate], (
        "whole replicates first"
    )
    assert len(ids(plan)) == 18
    first = plan.trials[4].trial
    assert (first.labels, first.noise.rate, first.replicate, first.method.name) == (100, 0.2, 0, "supervised")
    assert plan.trials[5].trial.method.augmentation == "strong"
    assert [trial.id for trial in declare().trials()] == [planned.id for planned in plan.trials]


def test_without_panels_every_arm_is_crossed_with_every_factor():
    plan = declare(panels={}, presets={}).plan()
    assert len(plan.trials) == 3 * 4 * 2
    assert plan.record.panels["all"].arms == ("plain", "strong", "mixed")
    bare = Study(name="bare", question="?", base=Trial(method="supervised"), replicates=3).plan()
    assert rows(bare) == [("base", {}, 0), ("base", {}, 1), ("base", {}, 2)]


@pytest.mark.parametrize("preset, count", [(None, 18), ("half", 5), ("methods", 6), ("other", 18)])
def test_presets_change_the_size(preset, count):
    """half: 2 arms at 2 rates and the third arm, one replicate.  methods: 3 arms, 2 replicates."""
    assert len(declare().plan(preset).trials) == count


def test_a_preset_changes_base_factors_and_arms():
    plan = declare().plan("other")
    assert {planned.trial.epochs for planned in plan.trials} == {7}
    assert {planned.trial.labels for planned in plan.trials if "labels" not in planned.setting} == {100}
    assert {planned.trial.method.views for planned in plan.trials if planned.arm == "mixed"} == {3}
    assert plan.record.base_levels == {"labels": 100, "noise.rate": 0.4}
    assert {canonical(setting) for _, setting, _ in rows(plan)} == {
        "{}", '{"labels":50}', '{"noise.rate":0.2}', '{"labels":50,"noise.rate":0.2}',
    }  # fmt: skip


def test_a_setting_leaves_out_the_levels_of_the_base():
    plan = declare(factors={"labels": [50.0, 100], "noise.rate": ["0.4", 0.2]}).plan()
    assert sum(planned.setting == "{}" for planned in plan.trials) == 6, "however a level is spelled"
    switched = declare(
        arms={"plain": {}}, factors={"method": ["supervised", "mixmatch"]}, panels={}, contrasts=[], presets={}
    )
    assert rows(switched.plan())[:2] == [("plain", {}, 0), ("plain", {"method": "mixmatch"}, 0)]


def test_changes_from_the_command_line_come_last():
    plan = declare().plan("other", changes={"epochs": 9, "method.batch_size": 8}, replicates=3)
    assert {planned.trial.epochs for planned in plan.trials} == {9}
    assert {planned.trial.method.batch_size for planned in plan.trials if planned.arm == "plain"} == {8}
    assert len(plan.trials) == 27 and plan.record.replicates == 3


def test_adding_an_arm_a_replicate_or_a_level_leaves_every_other_trial_as_it_is():
    before = ids(declare().plan())
    arms = {"new": {"epochs": 9}, **declare().arms}
    panels = {**declare().panels, "more": Panel("More", ("plain", "new"))}
    added = ids(declare(arms=arms, panels=panels).plan())
    assert before < added and len(added) == len(before) + 2
    assert before < ids(declare().plan(replicates=5))
    assert before < ids(declare(factors={"labels": [20, 50, 100], "noise.rate": [0.1, 0.2, 0.4]}).plan())
    assert before > ids(declare().plan("half")), "half a study is part of the whole"
    assert before == ids(declare(question="Other words?", name="renamed", contrasts=[], presets={}).plan())


@settings(max_examples=20)
@given(st.permutations(["plain", "strong", "mixed"]), st.permutations([50, 100]), st.permutations([0.2, 0.4]))
def test_the_order_of_a_declaration_changes_no_trial(arms, labels, rates):
    shuffled = declare(
        arms={arm: declare().arms[arm] for arm in arms}, factors={"noise.rate": rates, "labels": labels}
    ).plan()
    assert ids(shuffled) == ids(declare().plan())
    assert [planned.trial.replicate for planned in shuffled.trials] == [0] * 9 + [1] * 9


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"arms": {"plain": {}, "twin": {"noise.rate": 0.4}}}, ["'plain'", "'twin'", "same configuration", "the base"]),
        ({"arms": {"plain": {"labels": 100}}, "factors": {"labels": [50, 100]}}, ["'plain'", "labels"]),
        ({"factors": {"lables": [1]}}, ["'lables'", "did you mean 'labels'?"]),
        ({"factors": {"method.views": [1]}}, ["'method.views'"]),
        ({"arms": {"plain": {"method.batchsize": 1}}}, ["'method.batchsize'", "did you mean 'method.batch_size'?"]),
        ({"factors": {"labels": [50, "many"]}}, ["labels", "'many'"]),
        ({"factors": {"labels": []}}, ["labels", "level"]),
        ({"arms": {"plain": {"replicate": -3}}}, ["replicate", "-3"]),
    ],
)
def test_a_plan_that_cannot_be_meant_gets_one_sentence(changes, words):
    with pytest.raises(ValueError) as error:
        declare(**{"arms": {"plain": {}}, "factors": {}, "panels": {}, "contrasts": [], "presets": {}} | changes).plan()
    check(str(error.value), words)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"contrasts": [Contrast("plain", against="bold")]}, ["'bold'"]),
        ({"panels": {"p": Panel("", ("bold",))}}, ["'p'", "'bold'"]),
        ({"panels": {"p": Panel("", ("plain",), ("epochs",))}}, ["'p'", "'epochs'"]),
        ({"panels": {"p": Panel("", ())}}, ["'p'", "arm"]),
        ({"arms": {}}, ["arm"]),
        ({"presets": {"half": Preset(panels=("p",))}}, ["'half'", "'p'"]),
        ({"presets": {"half": Preset(arms={"bold": {}})}}, ["'half'", "'bold'"]),
        ({"presets": {"half": Preset(factors={"epochs": [1]})}}, ["'half'", "'epochs'"]),
        ({"replicates": 0}, ["replicates"]),
        ({"presets": {"half": {"replicates": 0}}}, ["replicates"]),
        ({"name": "Robust Mix"}, ["name"]),
        ({"factor": {}}, ["factor"]),
        ({"panel": {}}, ["panel"]),
    ],
)
def test_a_declaration_that_does_not_fit_together_is_refused_when_it_is_made(changes, words):
    with pytest.raises(ValueError) as error:
        declare(**{"panels": {}, "contrasts": [], "presets": {}} | changes)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"preset": "double"}, ["'double'", "half, methods, other"]),
        ({"changes": {"lables": 3}}, ["'lables'", "did you mean 'labels'?"]),
        ({"changes": {"replicate": 3}}, ["replicate"]),
        ({"replicates": 0}, ["0", "at least 1"]),
        ({"replicates": -2}, ["-2", "at least 1"]),
    ],
)
def test_a_wish_that_a_study_cannot_meet_gets_one_sentence(arguments, words):
    with pytest.raises(ValueError) as error:
        declare().plan(**arguments)
    check(str(error.value), words)


def check(sentence, words):
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence and sentence[-1] in ".?" and sentence[-2] not in ".?", sentence


# ----------------------------------------------------------------------------------------------------------- the record


def test_the_record_is_json_and_the_same_every_time():
    plan, again = declare().plan(), declare().plan()
    stored = json.dumps(plan.record.as_json())
    assert read_record(stored, "small") == plan.record and json.loads(stored) == plan.record.as_json()
    assert plan.hash == again.hash and stored == json.dumps(again.record.as_json())
    assert len({declare().plan(preset).hash for preset in (None, "half", "methods", "other")}) == 4
    assert declare().plan(replicates=3).hash != plan.hash and declare(question="?").plan().hash != plan.hash


def test_the_record_says_what_a_reader_needs():
    plan = declare().plan()
    record = plan.record.as_json()
    assert (record["study"], record["preset"], record["replicates"], record["selection"]) == (
        "small",
        "base",
        2,
        "last",
    )
    assert record["arms"] == {"plain": {}, "strong": {"method.augmentation": "strong"}, "mixed": {"method": "mixmatch"}}
    assert record["panels"]["methods"]["reference"] == "plain" and record["panels"]["noise"]["across"] == [
        "labels",
        "noise.rate",
    ]
    assert record["base_levels"] == {"labels": 50, "noise.rate": 0.4}
    assert record["factors"] == {"labels": [50, 100], "noise.rate": [0.2, 0.4]}
    assert record["contrasts"] == [{"arm": "strong", "against": "plain", "direction": "any", "smallest_effect": 0.01}]
    assert Trial.model_validate(record["base"]) == declare().base
    for entry, planned in zip(record["trials"], plan.trials, strict=True):
        assert entry == {
            "trial": planned.id,
            "arm": planned.arm,
            "setting": json.loads(planned.setting),
            "replicate": planned.trial.replicate,
        }


def test_an_arm_of_no_chosen_panel_is_not_in_the_record():
    study = declare(
        panels={**declare().panels, "pair": Panel("Two", ("plain", "strong"))},
        presets={"pair": Preset(panels=("pair",))},
    )
    assert list(study.plan("pair").record.arms) == ["plain", "strong"]


@pytest.mark.slow
def test_a_plan_is_stored_and_read_back(tmp_path):
    store, plan = Store(tmp_path), declare().plan()
    store.write_plan(plan_row(plan, "abc"))
    stored = store.plans("small").iloc[0]
    assert json.loads(stored["plan"]) == plan.record.as_json() and read_records(store.plans("small")) == [plan.record]
    assert (stored["preset"], stored["plan_hash"], stored["git_commit"]) == ("base", plan.hash, "abc")


# -------------------------------------------------------------------------------------------------------- reconciling


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def finish(store, planned, study="small", attempt=1, **fields):
    trial = planned.trial
    row = {
        "trial": planned.id, "attempt": attempt, "status": "ok", "accuracy_last": 0.75, "seconds": 10.0,
        "code_hash": code_hash(trial.method.name), "method": trial.method.name, "dataset": trial.dataset,
        "network": trial.network, "epochs": trial.total_epochs, "epochs_done": trial.total_epochs,
    }  # fmt: skip
    store.write_attempt(study, {**row, **fields}, [])


def test_an_empty_folder_lacks_everything(store):
    statuses = reconcile(declare().plan(), store)
    assert by_state(statuses) == {"done": 0, "stale": 0, "running": 0, "failed": 0, "missing": 18}
    assert all(status.seconds is None and status.accuracy is None for status in statuses)
    assert not store.root.exists(), "looking makes nothing"


def test_every_state_is_told_from_what_is_stored(store):
    plan = declare().plan()
    done, rerun, failed, diverged, stale, running, lost, elsewhere = plan.trials[:8]
    finish(store, done)
    finish(store, rerun, status="failed", failure_class="oom", accuracy_last=None)
    finish(store, rerun, attempt=2, accuracy_last=0.5)
    finish(
        store,
        failed,
        status="failed",
        failure_class="code_error",
        failure_message="KeyError: x\ntrace",
        accuracy_last=None,
    )
    finish(store, diverged, status="failed", failure_class="nan", failure_message="loss …", accuracy_last=None)
    finish(store, stale, code_hash="0" * 12)
    finish(
        store,
        lost,
        status="preempted",
        failure_class="preempted",
        failure_message="lost",
        accuracy_last=None,
        seconds=None,
    )
    finish(store, elsewhere, study="another")
    claim(store, plan.study, running.id)

    statuses = {status.planned.id: status for status in reconcile(plan, store)}
    assert [status.planned for status in reconcile(plan, store)] == list(plan.trials), "in the plan's order"
    found = {name: statuses[planned.id] for name, planned in {
        "done": done, "rerun": rerun, "failed": failed, "diverged": diverged, "stale": stale, "running": running,
        "lost": lost, "elsewhere": elsewhere,
    }.items()}  # fmt: skip
    assert {name: status.state for name, status in found.items()} == {
        "done": "done", "rerun": "done", "failed": "failed", "diverged": "done", "stale": "stale", "running": "running",
        "lost": "failed", "elsewhere": "missing",
    }  # fmt: skip
    assert (found["done"].accuracy, found["done"].seconds, found["done"].failure) == (0.75, 10.0, None)
    assert found["rerun"].accuracy == 0.5
    assert found["failed"].failure.startswith("code_error: KeyError: x")
    assert found["diverged"].failure == "loss …"
    assert found["diverged"].accuracy == 0.1, "chance, of ten classes"
    assert [name for name, status in found.items() if status.diverged] == ["diverged"]
    assert by_state(list(statuses.values())) == {"done": 3, "stale": 1, "running": 1, "failed": 2, "missing": 11}


def test_a_held_trial_is_running_whatever_it_was_and_a_dead_lease_is_not(store):
    plan = declare().plan()
    finish(store, plan.trials[0], code_hash="0" * 12)
    claim(store, plan.study, plan.trials[0].id)
    lease, _ = claim(store, plan.study, plan.trials[1].id)
    record = json.loads(lease.path.read_text(encoding="utf-8"))
    lease.path.write_text(canonical({**record, "born": 0.0}), encoding="utf-8")
    assert [status.state for status in reconcile(plan, store)[:2]] == ["running", "missing"]


def test_time_is_expected_from_trials_of_the_same_kind(store):
    plan = declare().plan()
    finish(store, plan.trials[0], seconds=10.0)
    finish(store, plan.trials[1], seconds=30.0)
    for planned, status in zip(plan.trials, reconcile(plan, store), strict=True):
        if planned.arm == "mixed":
            assert status.seconds is None, "nothing is known of this method"
        elif status.state == "missing":
            assert status.seconds == pytest.approx(20.0)
    longer = declare().plan(changes={"epochs": 50})
    assert reconcile(longer, store)[0].seconds == pytest.approx(10.0), "half as many epochs"
    finish(store, plan.trials[8], status="failed", failure_class="nan", seconds=3.0, epochs_done=1, accuracy_last=None)
    assert reconcile(plan, store)[17].seconds == pytest.approx(300.0), (
        "by the epochs it did, not by those it should have"
    )


def test_time_is_expected_on_the_device_that_was_used_last_and_from_the_same_preset_first(store):
    """A preset may make longer epochs, and another device is another pace: neither is averaged in."""
    plan = declare().plan()
    finish(store, plan.trials[0], seconds=100.0, device="cpu", ended_at=datetime(2026, 1, 1, tzinfo=UTC))
    finish(store, plan.trials[1], seconds=3.0, device="H200", ended_at=datetime(2026, 1, 2, tzinfo=UTC))
    waiting = [one for one in reconcile(plan, store) if one.state == "missing" and one.planned.arm != "mixed"]
    assert {(one.seconds, one.device) for one in waiting} == {(3.0, "H200")}
    finish(store, plan.trials[2], seconds=8.0, preset="long", device="H200", ended_at=datetime(2026, 1, 1, tzinfo=UTC))
    pace = reconcile(replace(plan, record=plan.record.model_copy(update={"preset": "long"})), store)
    assert {one.seconds for one in pace if one.state == "missing" and one.planned.arm != "mixed"} == {8.0}


def test_a_damaged_part_is_run_again_and_not_passed_over_in_silence(store, caplog):
    plan = declare().plan()
    finish(store, plan.trials[0])
    path = store.attempt_path("trials", "small", plan.trials[0].id, 1)
    path.write_bytes(path.read_bytes()[:100])
    assert reconcile(plan, store)[0].state == "missing"
    assert len(caplog.messages) == 1 and path.name in caplog.messages[0]


# ------------------------------------------------------------------------------------------------- the study of RobMix


@pytest.fixture(scope="module")
def robmix():
    spec = importlib.util.spec_from_file_location("robmix_ablation", FOLDER / "robmix_ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.study


# noise_and_labels 3 arms × labels × rates; topology 1 new; pretraining 2 and SimCLR; beside 2; frozen_head 2;
# gradient 4; optimizers 3, and in turn 2; ratios 2 × ratios; combined 4 new
@pytest.mark.parametrize(
    "preset, trials",
    [
        (None, (36 + 1 + 3 + 2 + 2 + 4 + 3 + 2 + 6 + 4) * 5),
        ("cifar10", (36 + 1 + 3 + 2 + 2 + 4 + 3 + 2 + 6 + 4) * 5),
        ("paper", (36 + 1 + 3 + 2 + 2 + 4 + 3 + 2 + 6 + 4) * 5),
        ("digits", (3 + 1 + 2 + 4 + 3) * 10 + 24 * 2),  # five panels; fewer replicates elsewhere
        ("smoke", (12 + 1 + 3 + 2 + 2 + 4 + 3 + 2 + 4 + 4) * 2),
    ],
)
def test_every_preset_of_robmix_plans(robmix, preset, trials):
    plan = robmix.plan(preset)
    assert len(plan.trials) == len(ids(plan)) == trials
    declared = [planned for planned in plan.trials if not planned.prerequisite]
    used = {planned.arm for planned in declared}
    shown = {arm for panel in plan.record.panels.values() for arm in panel.arms}
    assert used == (shown if preset == "digits" else set(robmix.arms)), "no arm is forgotten by the panels"
    assert len([1 for planned in declared if planned.setting == "{}"]) == len(used) * plan.record.replicates
    assert read_record(json.dumps(plan.record.as_json()), robmix.name) == plan.record


@pytest.mark.slow
def test_every_study_file_declares_a_study_under_its_own_name():
    for path in FOLDER.glob("*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.study.name == path.stem and module.__doc__
        for preset in (None, *module.study.presets):
            assert module.study.plan(preset).trials


def test_settings_may_be_given_as_objects_wherever_they_may_be_given_as_plain_data():
    settings = [{"kind": "symmetric", "rate": 0.4}, {"kind": "pair", "rate": 0.1}, {"kind": "pair", "rate": 0.2}]
    records = []
    for symmetric, pair, more in ([Noise(**one) for one in settings], settings):
        study = declare(
            arms={"full": {}, "noisy": {"noise": pair}},
            factors={"noise": [{}, more]},
            panels={"arms": Panel("Arms", ("full", "noisy")), "noise": Panel("Noise", ("full",), ("noise",))},
            contrasts=[],
            presets={"small": Preset(base={"noise": symmetric, "labels": 60}, arms={"noisy": {"noise": pair}})},
        )
        records.append([study.plan(preset).record.as_json() for preset in (None, "small")])
    assert records[0] == records[1] and json.dumps(records)
