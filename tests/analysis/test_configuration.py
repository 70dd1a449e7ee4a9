"""What was trained, from plans and rows: the base, the arms, and what compared arms differ in without a word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import configuration, load
from analysis.report.build import build
from analysis.report.sentences import noise_rows, verdict_in_words
from analysis.results import Results, read_results
from lnl import Noise, Study, Trial
from lnl.storage.plan_record import PlanRecord
from lnl.study.parts import Contrast
from lnl.trial.config import Trial as Whole
from tests import simulated
from tests.analysis.test_report import row, text_of

BASE = {"method": "supervised", "dataset": "digits", "network": "small_convnet", "labels": 100, "epochs": 2, "steps": 5}


def planned(arms: dict[str, dict[str, Any]], contrasts: list[tuple[str, str]] = []) -> PlanRecord:  # noqa: B006
    declared = [Contrast(arm, against=against) for arm, against in contrasts]
    base = Trial(**BASE, noise=Noise("symmetric", 0.4))
    study = Study(name="quick", question="?", base=base, arms=arms, replicates=1, contrasts=declared)
    return study.plan().record


def rows(plan: PlanRecord, **parameters: int) -> pd.DataFrame:
    """Of every arm in the base setting, as workers write them."""
    base = Whole.model_validate(plan.base)
    about = [
        {
            "arm": arm,
            "setting": {},
            "config": json.dumps(
                base.override({k: v for k, v in overrides.items() if k != "replicate"}).model_dump(mode="json")
            ),
            "parameters": parameters.get(arm, 1000),
        }
        for arm, overrides in plan.arms.items()
    ]
    return pd.DataFrame(about)


NONE = pd.DataFrame({"arm": [], "setting": [], "config": [], "parameters": []})
GCE = {"method": "gce"}


@pytest.mark.parametrize(
    ("arms", "parameters", "expected"),
    [
        pytest.param(
            {"full": {}, "gce": GCE},
            {},
            ["batch size (128, 64)", "learning rate (0.01, 0.03)", "weight decay (0.0001, 0.0005)"],
            id="another method brings its own defaults",
        ),
        pytest.param({"full": {}, "small": {"method.batch_size": 32}}, {}, None, id="what an arm says is no remark"),
        pytest.param({"full": {}, "long": {"epochs": 9, "steps": 1}}, {}, None, id="epochs and steps that it says"),
        pytest.param(
            {"full": {}, "gce": {"method": "gce", "method.batch_size": 128}},
            {},
            ["learning rate (0.01, 0.03)"],
            id="what it says of another method is no remark either",
        ),
        pytest.param(
            {"full": {"method.batch_size": 32}, "gce": GCE}, {}, ["batch size (128, 32)"], id="only one of them says it"
        ),
        pytest.param(
            {"full": {}, "gce": {"method": {"name": "gce", "batch_size": 64}}},
            {},
            ["learning rate (0.01, 0.03)"],
            id="a method given with its fields",
        ),
        pytest.param({"full": {}, "wide": {"network": "convnet_002"}}, {"wide": 9000}, None, id="another network"),
        pytest.param({"full": {}, "twice": {"method.augmentation": "none"}}, {"twice": 2000}, None, id="one method"),
        pytest.param(
            {"full": {}, "twice": {"method": "co_teaching"}},
            {"twice": 2000},
            ["number of parameters (2,000, 1,000)"],
            id="two networks",
        ),
        pytest.param(
            {"full": {}, "selfmatch": {"method": "selfmatch", "method.pretrain_epochs": 2}},
            {},
            ["learning-rate schedule (fixmatch, cosine)", "weight average (0.999, 0)"],
            id="pre-training that it says",
        ),
    ],
)  # fmt: skip
def test_what_compared_arms_differ_in_beyond_what_they_say(
    arms: dict[str, dict[str, Any]], parameters: dict[str, int], expected: list[str] | None
) -> None:
    plan = planned(arms, [(list(arms)[1], "full")])
    found = configuration.remarks(plan, rows(plan, **parameters))
    if expected is None:
        assert found == []
        return
    assert [(one.arm, one.against) for one in found] == [(list(arms)[1], "full")]
    for part in expected:
        assert part in found[0].in_words()
    for name in ("epochs (", "steps an epoch (", "precision ("):
        assert name not in found[0].in_words()
    if "number of parameters" not in expected[0]:
        assert "parameters" not in found[0].in_words()


def test_the_classic_in_one_sentence() -> None:
    plan = planned({"cross_entropy": {}, "gce": GCE, "mixup": {"method": "mixup"}}, [("gce", "cross_entropy")])
    found = configuration.remarks(plan, rows(plan))
    assert next(configuration.remark_sentences(found)) == (
        "gce and cross entropy also differ in batch size (128, 64), learning rate (0.01, 0.03), weight decay "
        "(0.0001, 0.0005) and learning-rate schedule (step, cosine)."
    )
    assert [(one.arm, one.against) for one in found] == [("gce", "cross_entropy"), ("mixup", "cross_entropy")]


def test_pairs_are_those_that_the_report_compares_each_once() -> None:
    plan = planned({"a": {}, "b": {"labels": 50}, "c": {"labels": 60}}, [("c", "b"), ("b", "a")])
    assert configuration.compared_arms(plan) == [
        ("c", "b"),
        ("b", "a"),
        ("c", "a"),
    ]  # the panel's reference is its first


def test_before_a_row_only_what_the_plan_says_is_known() -> None:
    plan = planned({"full": {}, "gce": GCE, "noisy": {"method.batch_size": 8}}, [("gce", "full")])
    known = configuration.configurations(plan, NONE)
    assert known["noisy"]["method.batch_size"] == 8 and known["noisy"]["labels"] == 100
    assert known["gce"]["method.name"] == "gce" and "method.batch_size" not in known["gce"]
    assert configuration.remarks(plan, NONE) == []


def test_arms_that_are_one_training_are_told() -> None:
    plan = planned({"full": {}, "again": {"replicate": 1}, "other": {"labels": 50}})
    assert list(configuration.same_training_sentences(plan, rows(plan))) == [
        "full and again are one configuration, drawn afresh: whatever differs between them is chance."
    ]
    shared = tuple(one.model_copy(update={"arm": "full_tpe"}) for one in plan.trials if one.arm == "full")
    searched = plan.model_copy(update={"arms": {**plan.arms, "full_tpe": {}}, "trials": plan.trials + shared})
    told = list(configuration.same_training_sentences(searched, rows(plan)))
    assert "full and full tpe are one training: the same trials count under both names." in told


def test_overrides_that_say_what_the_base_says_change_nothing() -> None:
    plan = planned({"full": {"method": "supervised", "labels": 100}, "gce": {"method": "gce", "method.batch_size": 64}})
    assert configuration.changed_fields(plan, "full") == {}
    assert configuration.changes_in_words(configuration.changed_fields(plan, "gce")) == "method: gce"


# --------------------------------------------------------------------------------------------------------------- page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small store that an earlier version wrote: four arms, one of which diverges, one of another method."""
    root = Path(__file__).parents[1] / "fixture" / "earlier" / "store"
    return build(root, "earlier", output=tmp_path_factory.mktemp("page"))


@pytest.mark.slow
def test_the_page_tells_what_was_trained_to_whoever_has_not_seen_the_study(page: Path) -> None:
    text = text_of(page)
    assert "The base trains small_convnet on digits by the method supervised; labelled images: 100," in text
    for cells in (
        "data set digits",
        "network small_convnet; 53,362 parameters",
        "labelled images 100, all classes together",
        "label noise symmetric, 40 % of the labels",
        "optimizer SGD; Nesterov momentum 0.9; learning rate 0.03, cosine; weight decay 0.0005",
        "batch 64 images",
        "training 2 epochs of 5 steps, 10 in all",
        "precision float32",
        "validation none",
        "replicates 2 of each arm in each setting",
        "supervised nothing",
        "gce method: gce",
        "diverges optimizer learning rate: 1e+30",
        "from simclr starts from a backbone that simclr has trained (epochs: 1)",
    ):
        assert cells in text, cells
    assert "method.augmentation weak" in text


@pytest.mark.slow
def test_the_page_warns_at_the_verdict_of_arms_that_differ_in_more_than_they_say(page: Path) -> None:
    text = text_of(page)
    remark = "differ in batch size (128, 64), learning rate (0.01, 0.03), weight decay"
    assert text.index("gce against supervised") < text.index(f"The two arms also {remark}") < text.index("figure")
    assert f"gce and supervised also {remark}" in text


@pytest.mark.slow
def test_the_page_says_why_trials_diverged(page: Path) -> None:
    text = text_of(page)
    assert "What failed or diverged, and why" in text
    assert "diverged loss was no finite number in epoch …: lower the learning rate. diverges 2" in text


def test_failures_are_grouped_by_their_first_line(tmp_path: Path) -> None:
    simulation, plan = simulated.Simulation(tmp_path), simulated.plan(4, panels=["frozen_head"])
    simulation.submit(plan)
    said = ["RuntimeError: odd\n  a trace", "RuntimeError: odd\n  another trace", None]
    for entry, message in zip(plan["trials"], said, strict=False):
        simulation.trial(**entry, status="failed", failure_class="code_error", failure_message=message)
    table = configuration.failures_table(load(tmp_path, simulated.STUDY))
    assert table.rows == [
        ["code error", "RuntimeError: odd", "full", "2"],
        ["code error", "(it left no message)", "full", "1"],
    ]


@pytest.mark.parametrize(
    ("columns", "doubts"),
    [
        ({}, ""),
        ({"declared_after": 0, "declared_of": 8}, ""),
        ({"declared_after": float("nan"), "declared_of": float("nan")}, ""),
        ({"declared_after": 3, "declared_of": 8}, "Declared after 3 of 8 trials had ended."),
    ],
)
def test_a_contrast_that_was_declared_late_is_told_at_its_verdict(columns: dict[str, Any], doubts: str) -> None:
    assert verdict_in_words(row(**columns), 5).doubts == doubts


def test_what_was_set_aside_is_told_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated.Simulation(tmp_path).submit(simulated.plan(1, panels=["frozen_head"]))
    sentence = "2 rows are left out: their data were replaced."
    monkeypatch.setattr(Results, "remarks", (sentence,), raising=False)
    text = text_of(build(tmp_path, simulated.STUDY))
    assert sentence in text and text.index(sentence) < text.index("declared contrasts")


def test_given_labels_are_named_with_their_measured_share_and_no_rate() -> None:
    trials = pd.DataFrame(
        {
            "noise_kind": ["given", "given", "given", "symmetric"],
            "noise_rate": [0.0, 0.0, 0.0, 0.4],
            "labels": 100,
            "noise_realised": [0.402, 0.402, np.nan, 0.41],
            "noise_hash": ["a", "a", "b", "c"],
            "config": [*(json.dumps({"noise": {"column": name}}) for name in ("worse", "worse", None)), None],
        }
    )
    assert noise_rows(trials) == [
        ["given labels", "–", "100", "not known", "1"],
        ["given labels, column worse", "–", "100", "40.20 %", "1"],
        ["symmetric", "40 %", "100", "41.00 %", "1"],
    ]


def test_the_sentence_on_the_base_keeps_the_path_of_the_users_own_data(tmp_path: Path) -> None:
    simulation = simulated.Simulation(tmp_path)
    plan = simulated.plan(1, panels=["frozen_head"])
    method = {"name": "own.py", "batch_size": 8}
    own = {"dataset": "folder:my pets?size=64", "network": "nets.py:wide", "method": method}
    simulation.submit({**plan, "base": {**plan["base"], **own, "epochs": 3, "noise": {"kind": "given"}}})
    sentence = configuration.base_sentence(read_results(tmp_path, simulated.STUDY))
    assert sentence.startswith("The base trains nets.py:wide on folder:my pets?size=64 by the method own.py;")
    assert "label noise: given labels;" in sentence


@pytest.mark.slow
def test_what_is_odd_about_the_data_and_that_their_truth_is_unknown_is_told_at_the_top(tmp_path: Path) -> None:
    simulation = simulated.Simulation(tmp_path)
    plan = simulated.plan(2, panels=["frozen_head"])
    remark = "4 of 90 test images are among the training images as well."
    simulation.submit(plan, data_remarks=json.dumps({"folder:pets": [remark]}))
    simulation.run(plan["trials"], noise_kind="given", noise_realised=None, transition=None, dataset="folder:pets")
    text = text_of(build(tmp_path, simulated.STUDY))
    unknown = "The true labels of the training images of folder:pets are not known"
    for sentence in (f"folder:pets: {remark}", unknown):
        assert text.index(sentence) < text.index("declared contrasts")
    assert "not known 2" in text[text.index("Label noise as realised") :] and "nan %" not in text


@pytest.mark.slow
def test_that_a_precision_was_not_the_same_for_all_is_told_at_the_top(tmp_path: Path) -> None:
    simulation = simulated.Simulation(tmp_path)
    plan = simulated.plan(2, panels=["frozen_head"])
    simulation.submit(plan)
    auto, first = json.dumps({"precision": "auto"}, separators=(",", ":")), plan["trials"][:1]
    simulation.run(first, config=auto, computed_in="bfloat16")
    assert "precision auto" not in " ".join(read_results(tmp_path, simulated.STUDY).remarks)
    simulation.run(plan["trials"][1:3], config=auto, computed_in="float32")
    simulation.run(plan["trials"][3:], computed_in="float32")
    (remark,) = [text for text in read_results(tmp_path, simulated.STUDY).remarks if "precision auto" in text]
    assert remark.startswith("Of the trials with precision auto 1 were computed in bfloat16 and 2 in float32")
