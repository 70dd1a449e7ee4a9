"""Declared looks: which arms get more replicates, from rows that are written by hand."""

import json

import numpy as np
import pytest

from analysis import load
from analysis.load import looks_taken
from lnl import Contrast, Noise, Preset, Study, Trial, sequential
from lnl.cli import main
from lnl.results import Store, now

LOOKS = (4, 6, 8)
BASE = {"cross_entropy": 0.80, "better": 0.90, "same": 0.80, "unclear": 0.801}
SPREAD = {
    "cross_entropy": 0.0,
    "better": 0.004,
    "same": 0.001,
    "unclear": 0.02,
}  # of a replicate, beside the base's own


def declare(**changes):
    fields = {
        "name": "looked",
        "question": "Which of these helps?",
        "base": Trial(
            method="supervised", dataset="digits", network="small_convnet", labels=100, epochs=2, steps=2
        ).override({"noise": Noise("symmetric", 0.2)}),
        "arms": {
            "cross_entropy": {},
            "better": {"method": "mixup"},
            "same": {"method.batch_size": 16},
            "unclear": {"method": "gce"},
        },
        "factors": {"noise.rate": [0.2, 0.4]},
        "contrasts": [Contrast(arm, against="cross_entropy", smallest_effect=0.01) for arm in list(BASE)[1:]],
        "looks": LOOKS,
    }
    return Study(**{**fields, **changes})


def finish(store, plan, skip=(), scores=None):
    """Write a row for each planned trial that has none; `skip`: (arm, replicate) that stay missing."""
    stored = set(store.read("trials", plan.study)[0]["trial"])
    for planned in plan.trials:
        arm, replicate = planned.arm, planned.trial.replicate
        if planned.id in stored or (arm, replicate) in skip:
            continue
        shared = np.random.default_rng(replicate).normal(0, 0.01)
        own = SPREAD[arm] * np.random.default_rng([replicate, list(BASE).index(arm)]).normal()
        score = (scores or BASE)[arm] + shared + own
        row = {
            **{"trial": planned.id, "attempt": 1, "preset": plan.preset, "arm": arm, "setting": planned.setting},
            **{"replicate": replicate, "status": "ok", "accuracy_last": score, "seconds": 1.0, "epochs_done": 2},
            **{"data_hash": "digits", "noise_hash": f"{replicate}", "split_hash": f"{replicate}", "device": "cpu"},
        }
        store.write_attempt(plan.study, row, [])


def counts(plan, setting="{}"):
    """Arm -> replicates that are planned in a setting."""
    arms = [planned.arm for planned in plan.trials if planned.setting == setting]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}


def test_arms_of_undecided_contrasts_go_on_to_the_next_look_and_others_stop(tmp_path):
    study, store = declare(), Store(tmp_path)
    plan, _ = sequential.grown(study.plan, store)
    assert counts(plan) == dict.fromkeys(BASE, 4)  # nothing has run: the first look asks for four
    finish(store, plan)
    plan, contrasts = sequential.grown(study.plan, store)
    verdicts = dict(zip(contrasts["arm"], contrasts["verdict"], strict=True))
    assert verdicts == {"better": "helps", "same": "equivalent", "unclear": "undecided"}
    assert counts(plan) == {"cross_entropy": 6, "better": 4, "same": 4, "unclear": 6}
    assert counts(plan, '{"noise.rate":0.4}') == dict.fromkeys(BASE, 4)  # contrasts are judged in the base setting
    finish(store, plan)
    plan, _ = sequential.grown(study.plan, store)
    assert counts(plan) == {"cross_entropy": 8, "better": 4, "same": 4, "unclear": 8}
    finish(store, plan)
    final, contrasts = sequential.grown(study.plan, store)
    assert final.hash == plan.hash  # after the last look nothing is added
    assert contrasts.set_index("arm")["look"].to_dict() == pytest.approx(
        {"better": 4, "same": 4, "unclear": np.nan}, nan_ok=True
    )


def test_a_look_waits_for_every_trial_that_it_asks_for(tmp_path):
    study, store = declare(), Store(tmp_path)
    finish(store, study.plan(), skip=[("unclear", 2)])
    plan, contrasts = sequential.grown(study.plan, store)
    assert counts(plan) == dict.fromkeys(BASE, 4)
    row = contrasts.set_index("arm").loc["unclear"]
    assert (row["verdict"], row["why"]) == ("undecided", "3 replicates are too few: a verdict needs 4")


def test_decisions_of_earlier_looks_stand_though_more_replicates_follow(tmp_path):
    """The base goes on for another contrast; what was decided at four replicates is decided by those four."""
    study, store = declare(), Store(tmp_path)
    for _ in LOOKS:
        plan, _ = sequential.grown(study.plan, store)
        finish(store, plan)
    contrasts = sequential.grown(study.plan, store)[1].set_index("arm")
    assert contrasts.loc["better", ["verdict", "look", "n"]].tolist() == ["helps", 4, 4]
    assert contrasts.loc["unclear", "looked"] == 8


def test_a_hopeless_contrast_stops_early(tmp_path):
    """Two points of spread and no smallest effect that could be ruled out: two more replicates change nothing."""
    contrasts = [Contrast("unclear", against="cross_entropy", smallest_effect=0.0001)]
    study, store = declare(contrasts=contrasts, looks=(4, 5)), Store(tmp_path)
    scores = {**BASE, "unclear": BASE["cross_entropy"]}
    flat = [np.random.default_rng([replicate, 3]).normal() for replicate in range(4)]
    scores["unclear"] -= SPREAD["unclear"] * float(np.mean(flat))  # an estimate of zero
    finish(store, study.plan(), scores=scores)
    assert counts(sequential.grown(study.plan, store)[0]) == dict.fromkeys(BASE, 4)


def test_looks_are_recorded_once_and_other_looks_are_refused_afterwards(tmp_path):
    study, store = declare(), Store(tmp_path)
    plan = study.plan()
    finish(store, plan)
    sentence, further = sequential.look(study.plan, plan, store)
    assert sentence == (
        "Look at 4 replicates: 1 helps, 1 equivalent, 1 undecided; more replicates for cross_entropy, unclear."
    )
    assert further is not None
    sequential.look(study.plan, plan, store)  # a driver that was killed here and started again
    (look,) = looks_taken(store, "looked", "base")
    assert look["looks"] == [4, 6, 8] and look["plan"] == plan.hash
    assert [row["verdict"] for row in look["contrasts"]] == ["helps", "equivalent", "undecided"]
    sequential.check_looks(store, study.plan())
    with pytest.raises(ValueError, match=r"already judged at the declared looks 4, 6, 8.*--max-seeds 8"):
        sequential.check_looks(store, study.plan(looks=(4, 6, 8, 10)))
    with pytest.raises(ValueError, match="already judged"):
        sequential.check_looks(store, study.plan(replicates=12))


def test_the_report_reads_the_plan_that_grew(tmp_path):
    study, store = declare(), Store(tmp_path)
    finish(store, study.plan())
    plan, _ = sequential.grown(study.plan, store)
    finish(store, plan)
    store.write_plan(
        {
            **{"study": plan.study, "preset": plan.preset, "plan_hash": plan.hash, "plan": json.dumps(plan.record)},
            "submitted_at": now(),
        }
    )
    loaded = load(tmp_path, "looked")
    assert loaded.plan["looks"] == [4, 6, 8] and loaded.left.empty and loaded.missing.empty
    assert sequential.declared_before(store, "looked", "base") == (4, 6, 8)


@pytest.mark.parametrize(
    ("first", "last", "looks"),
    [(5, 10, (5, 7, 9, 10)), (4, 8, (4, 6, 8)), (2, 5, (4, 5))],
)
def test_blocks_of_two_from_four_on(first, last, looks):
    assert sequential.schedule(first, last) == looks


def test_looks_that_cannot_be_get_one_sentence(capsys, tmp_path):
    with pytest.raises(ValueError, match="leaves no room after the first look at 4 replicates"):
        sequential.schedule(2, 4)
    for looks in ((3, 5), (4, 4), (6, 4)):
        with pytest.raises(ValueError, match="looks are rising numbers of replicates, from 4 on"):
            declare(looks=looks)
    assert declare(presets={"smoke": Preset(replicates=2)}).plan("smoke").record["looks"] == []
    assert declare(presets={"small": Preset(base={"epochs": 1})}).plan("small").record["looks"] == [4, 6, 8]
    here = ["robmix_ablation", "--preset", "digits", "--storage", str(tmp_path)]
    assert main(["plan", *here, "--max-seeds", "8"]) == 2
    assert "belongs to --until-decided" in capsys.readouterr().err
    assert main(["plan", *here, "--until-decided"]) == 2
    assert "needs --max-seeds N" in capsys.readouterr().err
    assert main(["plan", *here, "--until-decided", "--max-seeds", "8"]) == 0
    assert "Differences that up to 8 replicates find" in capsys.readouterr().out


def test_a_search_has_a_fixed_number_of_replicates():
    study = declare(base=declare().base.override({"validation.images": 100}))
    assert study.plan(search={"suggestions": 2}).record["looks"] == []
    with pytest.raises(ValueError, match="search without looks"):
        study.plan(search={"suggestions": 2}, looks=(4, 6))
