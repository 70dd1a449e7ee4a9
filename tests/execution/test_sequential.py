"""Declared looks: which arms get more replicates, from rows that are written by hand."""

import json
from functools import partial

import numpy as np
import pytest

from analysis import load
from analysis.measures import ACCURACY
from analysis.results import looks_taken
from analysis.verdicts import FEWEST_REPLICATES
from lnl import Contrast, Noise, Preset, Search, Study, Trial, data
from lnl.cli import status as cli_status
from lnl.cli.main import main, study_main
from lnl.execution import sequential
from lnl.storage.places import now
from lnl.storage.store import Store
from lnl.study.parts import FEWEST_AT_A_LOOK
from lnl.study.plan import plan_row
from lnl.trial.provenance import Current
from tests.execution.test_runner import execute_without_ray as execute

CURRENT = Current()
DIGITS = data.load("digits").checksum
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
            **{"data_hash": DIGITS, "noise_hash": f"{replicate}", "split_hash": f"{replicate}", "device": "cpu"},
        }
        store.write_attempt(plan.study, row, [])


def counts(plan, setting="{}"):
    """Arm -> replicates that are planned in a setting."""
    arms = [planned.arm for planned in plan.trials if planned.setting == setting]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}


@pytest.mark.slow
def test_arms_of_undecided_contrasts_go_on_to_the_next_look_and_others_stop(tmp_path):
    study, store = declare(), Store(tmp_path)
    plan, _ = sequential.plan_so_far(study.plan, store, CURRENT)
    assert counts(plan) == dict.fromkeys(BASE, 4)  # nothing has run: the first look asks for four
    finish(store, plan)
    plan, contrasts = sequential.plan_so_far(study.plan, store, CURRENT)
    verdicts = dict(zip(contrasts["arm"], contrasts["verdict"], strict=True))
    assert verdicts == {"better": "helps", "same": "equivalent", "unclear": "undecided"}
    assert counts(plan) == {"cross_entropy": 6, "better": 4, "same": 4, "unclear": 6}
    assert counts(plan, '{"noise.rate":0.4}') == dict.fromkeys(BASE, 4)  # contrasts are judged in the base setting
    finish(store, plan)
    plan, _ = sequential.plan_so_far(study.plan, store, CURRENT)
    assert counts(plan) == {"cross_entropy": 8, "better": 4, "same": 4, "unclear": 8}
    finish(store, plan)
    final, contrasts = sequential.plan_so_far(study.plan, store, CURRENT)
    assert final.hash == plan.hash  # after the last look nothing is added
    assert contrasts.set_index("arm")["look"].to_dict() == pytest.approx(
        {"better": 4, "same": 4, "unclear": np.nan}, nan_ok=True
    )


def test_a_look_waits_for_every_trial_that_it_asks_for(tmp_path):
    study, store = declare(), Store(tmp_path)
    finish(store, study.plan(), skip=[("unclear", 2)])
    plan, contrasts = sequential.plan_so_far(study.plan, store, CURRENT)
    assert counts(plan) == dict.fromkeys(BASE, 4)
    row = contrasts.set_index("arm").loc["unclear"]
    assert (row["verdict"], row["why"]) == ("no verdict", "3 replicates are too few: a verdict needs 4")


@pytest.mark.slow
def test_decisions_of_earlier_looks_stand_though_more_replicates_follow(tmp_path):
    """The base goes on for another contrast; what was decided at four replicates is decided by those four."""
    study, store = declare(), Store(tmp_path)
    for _ in LOOKS:
        plan, _ = sequential.plan_so_far(study.plan, store, CURRENT)
        finish(store, plan)
    contrasts = sequential.plan_so_far(study.plan, store, CURRENT)[1].set_index("arm")
    assert contrasts.loc["better", ["verdict", "look", "n"]].tolist() == ["helps", 4, 4]
    assert contrasts.loc["unclear", "looked"] == 8


@pytest.mark.slow
def test_a_hopeless_contrast_stops_early(tmp_path):
    """Two points of spread and no smallest effect that could be ruled out: two more replicates change nothing."""
    contrasts = [Contrast("unclear", against="cross_entropy", smallest_effect=0.0001)]
    study, store = declare(contrasts=contrasts, looks=(4, 5)), Store(tmp_path)
    scores = {**BASE, "unclear": BASE["cross_entropy"]}
    flat = [np.random.default_rng([replicate, 3]).normal() for replicate in range(4)]
    scores["unclear"] -= SPREAD["unclear"] * float(np.mean(flat))  # an estimate of zero
    finish(store, study.plan(), scores=scores)
    assert counts(sequential.plan_so_far(study.plan, store, CURRENT)[0]) == dict.fromkeys(BASE, 4)


@pytest.mark.slow
def test_looks_are_recorded_once_and_other_looks_are_refused_afterwards(tmp_path):
    study, store = declare(), Store(tmp_path)
    plan = study.plan()
    finish(store, plan)
    sentence, further = sequential.look(study.plan, plan, store, CURRENT)
    assert sentence == (
        "Look at 4 replicates: 1 helps, 1 equivalent, 1 undecided; more replicates for cross_entropy, unclear."
    )
    assert further is not None
    sequential.look(study.plan, plan, store, CURRENT)  # a driver that was killed here and started again
    (look,) = looks_taken(store, "looked", "base")
    assert look["looks"] == [4, 6, 8] and look["plan"] == plan.hash
    assert [row["verdict"] for row in look["contrasts"]] == ["helps", "equivalent", "undecided"]
    sequential.check_looks(store, study.plan())
    again = r"at the declared looks 4, 6, 8, .*--replicates 4 --until-decided --max-replicates 8"
    with pytest.raises(ValueError, match=again):
        sequential.check_looks(store, study.plan(looks=(4, 6, 8, 10)))
    with pytest.raises(ValueError, match="already judged"):
        sequential.check_looks(store, study.plan(replicates=12))
    wider = declare(contrasts=[Contrast(arm, against="cross_entropy", smallest_effect=0.02) for arm in list(BASE)[1:]])
    for other in (wider, declare(selection="last10")):
        with pytest.raises(ValueError, match="under other contrasts or another selection rule"):
            sequential.check_looks(store, other.plan())


@pytest.mark.slow
def test_looks_that_no_flags_give_are_asked_for_by_their_declaration(tmp_path):
    study, store = declare(looks=(4, 7, 8)), Store(tmp_path)
    finish(store, study.plan())
    sequential.look(study.plan, study.plan(), store, CURRENT)
    with pytest.raises(ValueError, match=r"declare looks=\(4, 7, 8\), or use another --storage"):
        sequential.check_looks(store, study.plan(looks=(4, 6, 8)))


def seen(store):
    """Of every look that was kept: replicates of each contrast by then, and how it stood."""
    looks = looks_taken(store, "looked", "base")
    return [[(row["looked"], row["verdict"]) for row in look["contrasts"]] for look in looks]


@pytest.mark.slow
def test_a_look_that_a_driver_was_killed_before_it_kept_is_kept_by_the_next(tmp_path):
    study, store = declare(), Store(tmp_path)
    finish(store, study.plan())
    plan, _ = sequential.plan_so_far(study.plan, store, CURRENT)  # the next driver's; `plan` and `status` keep nothing
    assert seen(store) == []
    finish(store, plan)
    sequential.look(study.plan, plan, store, CURRENT)
    decided = [(4, "helps"), (4, "equivalent")]
    assert seen(store) == [[*decided, (4, "undecided")], [*decided, (6, "undecided")]]
    sequential.plan_so_far(study.plan, store, CURRENT, record=True)
    assert len(seen(store)) == 2


@pytest.mark.slow
def test_a_look_at_some_arms_does_not_hide_that_at_the_others(tmp_path):
    """As with `--arms cross_entropy,better`, and then all: the plan is the same."""
    study, store = declare(), Store(tmp_path)
    plan = study.plan()
    later = [(arm, replicate) for arm in ("same", "unclear") for replicate in range(4)]
    finish(store, plan, skip=later)
    sentence, further = sequential.look(study.plan, plan, store, CURRENT)
    assert sentence == "Look at 4 replicates: 1 helps, 2 no verdict; trials of same, unclear have not run."
    assert further is None
    finish(store, plan)
    _, further = sequential.look(study.plan, plan, store, CURRENT)
    assert [[verdict for _, verdict in look] for look in seen(store)] == [
        ["helps", "no verdict", "no verdict"],
        ["helps", "equivalent", "undecided"],
    ]
    finish(store, further, skip=[("cross_entropy", replicate) for replicate in (4, 5)])
    sentence, none = sequential.look(study.plan, further, store, CURRENT)  # as with `--arms unclear`
    assert sentence.endswith("trials of cross_entropy have not run.") and none is None
    assert len(seen(store)) == 2  # no look, so none is kept


@pytest.mark.slow
def test_a_look_that_an_earlier_version_kept_is_the_same_look(tmp_path):
    """It said "undecided" where there can be no verdict, too."""
    study, store = declare(), Store(tmp_path)
    plan = study.plan()
    finish(store, plan, skip=[(arm, replicate) for arm in ("same", "unclear") for replicate in range(4)])
    _, contrasts = sequential.plan_so_far(study.plan, store, CURRENT)
    rows = contrasts[["arm", "against", *sequential.JUDGED[2:]]].astype(object)
    kept = rows.where(rows.notna(), None).to_dict("records")
    for row in kept:
        row["verdict"] = row["verdict"].replace("no verdict", "undecided")
    assert [row["verdict"] for row in kept] == ["helps", "undecided", "undecided"]
    about = {"preset": "base", "plan": plan.hash, "looks": plan.record.looks, "contrasts": kept}
    store.write_event(plan.study, "looked", **about)
    sequential.plan_so_far(study.plan, store, CURRENT, record=True)
    assert len(seen(store)) == 1


def test_before_the_first_look_the_arms_that_it_waits_for_are_named(tmp_path):
    study, store = declare(), Store(tmp_path)
    finish(store, study.plan(), skip=[("cross_entropy", 2)])
    sentence, further = sequential.look(study.plan, study.plan(), store, CURRENT)
    assert sentence == "No look yet; trials of cross_entropy have not run." and further is None
    assert seen(store) == []


@pytest.mark.slow
def test_the_report_reads_the_plan_that_grew(tmp_path):
    study, store = declare(), Store(tmp_path)
    finish(store, study.plan())
    plan, _ = sequential.plan_so_far(study.plan, store, CURRENT)
    finish(store, plan)
    store.write_plan(
        {
            **{
                "study": plan.study,
                "preset": plan.preset,
                "plan_hash": plan.hash,
                "plan": json.dumps(plan.record.as_json()),
            },
            "submitted_at": now(),
        }
    )
    loaded = load(tmp_path, "looked")
    assert loaded.plan.looks == (4, 6, 8) and loaded.left.empty and loaded.missing.empty
    assert sequential.declared_before(store, "looked", "base") == (4, 6, 8)


@pytest.mark.parametrize(
    ("first", "last", "looks"),
    [(5, 10, (5, 7, 9, 10)), (4, 8, (4, 6, 8)), (2, 5, (4, 5))],
)
def test_blocks_of_two_from_four_on(first, last, looks):
    assert sequential.schedule(first, last) == looks


def test_contrasts_of_which_the_same_is_expected_share_a_line(capsys, monkeypatch):
    contrasts = [
        {"arm": arm, "against": "a", "metric": ACCURACY, "deviation": None, "n": 0, "smallest_effect": None}
        for arm in "bcde"
    ]
    contrasts[1] |= {"deviation": 0.01, "n": 5}
    monkeypatch.setattr(cli_status, "contrasts", lambda *_: contrasts)
    cli_status.print_detectable(declare().plan(), None, None)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line[2:].partition("  ")[0] for line in lines] == ["b against a and 2 more", "c against a"]
    assert "assumed" in lines[0] and "(spread 1.00, of 5 replicates)" in lines[1]


def test_looks_that_cannot_be_get_one_sentence(capsys, tmp_path):
    with pytest.raises(ValueError, match="leaves no room after the first look at 4 replicates"):
        sequential.schedule(2, 4)
    for looks in ((3, 5), (4, 4), (6, 4)):
        with pytest.raises(ValueError, match="looks must be rising numbers of replicates, at least 4"):
            declare(looks=looks)
    assert declare(presets={"smoke": Preset(replicates=2)}).plan("smoke").record.looks == ()
    assert declare(presets={"small": Preset(base={"epochs": 1})}).plan("small").record.looks == (4, 6, 8)
    here = ["robmix_ablation", "--preset", "digits", "--storage", str(tmp_path)]
    assert main(["plan", *here, "--max-replicates", "8"]) == 2
    assert "belongs to --until-decided" in capsys.readouterr().err
    assert main(["plan", *here, "--until-decided"]) == 2
    assert "needs --max-replicates N" in capsys.readouterr().err
    assert main(["plan", *here, "--until-decided", "--max-replicates", "12"]) == 0
    heading, *lines = capsys.readouterr().out.partition("Differences that ")[2].splitlines()
    assert heading.startswith("up to 12 replicates find")
    assert [line.split("  ")[1] for line in lines] == ["6 contrasts"], "all assume the same spread"
    with pytest.raises(ValueError, match="1001 replicates are too many"):
        declare().plan(looks=(4, 1001))
    assert FEWEST_AT_A_LOOK == FEWEST_REPLICATES


def call(study, capsys, storage, *arguments):
    """Exit code, and what was printed."""
    code = study_main(study, [*arguments, "--storage", str(storage)])
    found = capsys.readouterr()
    return code, found.out + found.err


@pytest.mark.parametrize(
    ("changes", "flags", "sentence"),
    [
        ({"contrasts": []}, ["--max-replicates", "8"], "has nothing to decide"),
        ({}, ["--replicates", "5"], "needs --max-replicates N"),  # else five replicates, and no look
        ({"looks": ()}, [], "needs --max-replicates N"),
        ({"search": Search(suggestions=2)}, [], "fixed number of replicates: leave out --until-decided"),
    ],
)
def test_until_decided_is_refused_where_it_would_decide_nothing(changes, flags, sentence, tmp_path, capsys):
    study = declare(**{"base": declare().base.override({"validation.images": 100}), **changes})
    code, text = call(study, capsys, tmp_path, "--plan", "--until-decided", *flags)
    assert code == 2 and sentence in text and text.count("\n") == 1


@pytest.mark.slow
def test_flags_without_a_number_go_on_with_the_looks_of_before_and_a_study_that_changed_its_own_is_refused(
    tmp_path, capsys
):
    study, store = declare(looks=()), Store(tmp_path)
    plan = study.plan(looks=LOOKS)
    finish(store, plan)
    store.write_plan(plan_row(plan, None))
    sequential.look(partial(study.plan, looks=LOOKS), plan, store, CURRENT)
    for flags in ([], ["--until-decided"]):
        assert "up to 8 replicates" in call(study, capsys, tmp_path, "--plan", *flags)[1]
    code, text = call(declare(looks=(4, 6, 8, 10)), capsys, tmp_path)
    assert code == 2 and "already judged at the declared looks 4, 6, 8, " in text
    code, text = call(study, capsys, tmp_path, "--replicates", "12")
    assert code == 2 and "already judged" in text


@pytest.mark.parametrize(
    ("replicates", "smallest_effect", "sentence"),
    [
        (4, 0.0001, "declared to matter from 0.01: which more than 1,000 replicates find"),
        (1, 0.01, "1 replicate cannot give a verdict on 1 contrast: ask for at least 4 (--replicates 4)."),
    ],
)
def test_what_cannot_be_found_is_said(replicates, smallest_effect, sentence, tmp_path, capsys):
    contrast = Contrast("better", against="cross_entropy", smallest_effect=smallest_effect)
    study = declare(contrasts=[contrast], looks=(), replicates=replicates)
    assert sentence in call(study, capsys, tmp_path, "--plan")[1]


def test_a_search_has_a_fixed_number_of_replicates():
    study = declare(base=declare().base.override({"validation.images": 100}))
    assert study.plan(search={"suggestions": 2}).record.looks == ()
    with pytest.raises(ValueError, match="search without looks"):
        study.plan(search={"suggestions": 2}, looks=(4, 6))


STUDY = """
from lnl import Contrast, Noise, Study, Trial
study = Study(
    name="quick", question="What does one step in place of forty cost?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=200, epochs=4, steps=10,
               noise=Noise("symmetric", 0.2)),
    arms={"long": {}, "short": {"epochs": 1, "steps": 1}, "seen": {"method.batch_size": 63}},
    contrasts=[Contrast("short", against="long", direction="hurts"), Contrast("seen", against="long")],
    looks=(4, 6),
)
if __name__ == "__main__":
    study.main()
"""


@pytest.mark.slow
def test_a_run_goes_on_until_its_contrasts_are_decided(tmp_path):
    """Real training: the arm without training is found out at the first look, the arm's twin goes on to the last."""
    file, storage = tmp_path / "quick.py", tmp_path / "results"
    file.write_text(STUDY, encoding="utf-8")
    first = execute(file, storage, "--json")
    assert first.returncode == 0, first.stderr
    verdicts = {row["arm"]: row for row in json.loads(first.stdout)["contrasts"]}
    assert verdicts["short"]["verdict"] == "hurts" and verdicts["short"]["look"] == 4
    trained = Store(storage).read("trials", "quick")[0].groupby("arm").size().to_dict()
    assert trained["short"] == 4 and trained["long"] == trained["seen"] == verdicts["seen"]["n"]
    looks = looks_taken(Store(storage), "quick", "base")
    assert [look["looks"] for look in looks] == [[4, 6]] * len(looks) and looks[0]["contrasts"][0]["verdict"] == "hurts"
    again = execute(file, storage, "--json")
    assert json.loads(again.stdout)["contrasts"] == json.loads(first.stdout)["contrasts"]
    assert len(looks_taken(Store(storage), "quick", "base")) == len(looks), "nothing ran: no further look"
    refused = execute(file, storage, "--until-decided", "--max-replicates", "10")
    assert refused.returncode == 2 and "were already judged at the declared looks 4, 6" in refused.stderr
