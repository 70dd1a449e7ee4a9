"""What trials keep on request: written by workers, missed by runs, read by notebooks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from analysis import load
from analysis.notebook import LoadedStudy
from analysis.results import LoadError
from lnl import Study
from lnl.cli import status
from lnl.cli.doctor import examine
from lnl.cli.main import main
from lnl.execution import worker
from lnl.execution.job import RunSettings
from lnl.execution.submit import submit
from lnl.storage.part_names import KEPT, Kept
from lnl.storage.store import Store
from lnl.study.plan import Plan
from lnl.study.status import reconcile
from lnl.trial.config import parse
from lnl.trial.provenance import Current

SMALL = {"dataset": "digits", "network": "small_convnet", "labels": 50, "epochs": 2, "steps": 2}


@pytest.fixture(scope="module")
def plan() -> Plan:
    noisy = {"noise": {"kind": "symmetric", "rate": 0.4}}
    base = parse({"method": "supervised"}).override({**SMALL, **noisy})
    return Study(
        name="kept", question="?", base=base, arms={"plain": {}, "gce": {"method": "gce"}}, replicates=1
    ).plan()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def train(store: Store, plan: Plan, keep: Collection[Kept], **settings: Any) -> list[str]:
    """Each trial of the plan as a Ray worker does; how each ended."""
    job_of = submit(plan, store, Current(), rerun_stale=False)
    reports: list[dict[str, Any]] = []
    for planned in plan.trials:
        own = RunSettings(storage=store.root, gpus_per_trial=0, keep=tuple(keep), **settings)
        worker.execute(job_of(planned), own, reports.append)  # type: ignore[arg-type]
    return [report["outcome"] for report in reports if "outcome" in report]


def loaded(store: Store) -> LoadedStudy:
    return load(store.root, "kept")


@pytest.mark.slow
def test_what_is_kept_is_read_by_trial(store: Store, plan: Plan) -> None:
    assert train(store, plan, KEPT) == ["done", "done"]
    study = loaded(store)
    for trial, accuracy, arm in zip(
        study.trials["trial"], study.trials["accuracy_last"], study.trials["arm"], strict=True
    ):
        predictions, beliefs = study.predictions(trial), study.beliefs(trial)
        test = predictions[predictions["subset"] == "test"]
        assert (test["predicted"] == test["true"]).mean() == accuracy
        assert len(beliefs) == 50 and set(beliefs["ranked_by"]) == {"clean" if arm == "gce" else "given_probability"}
        assert beliefs["given_probability"].iloc[0] < beliefs["given_probability"].iloc[-1]
        assert "learner.heads.classifier.weight" in study.weights(trial)
    assert len(study.trials_with("weights")) == 2
    assert study.trials["class_names"].tolist() == ['["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'] * 2


@pytest.mark.slow
def test_a_trial_that_finished_without_is_told_and_trained_again_on_request(store: Store, plan: Plan) -> None:
    train(store, plan, [])
    statuses = reconcile(plan, store, keep=["beliefs", "weights"])
    assert [(one.state, one.lacks) for one in statuses] == [("done", ("beliefs", "weights"))] * 2
    assert status.totals(statuses).endswith(
        "2 done. 2 trials (arms plain and gce) finished without keeping beliefs and weights: --rerun-unkept trains "
        "them again."
    )
    assert [one.state for one in reconcile(plan, store, keep=["weights"], rerun_unkept=True)] == ["missing"] * 2
    assert all(one.lacks == () for one in reconcile(plan, store)), "nothing is to be kept"
    trial = plan.trials[0].id
    with pytest.raises(LoadError, match=f"{trial} has kept no beliefs: run the study with --keep beliefs --rerun"):
        loaded(store).beliefs(trial)
    with pytest.raises(LoadError, match=f"{trial} has kept no weights: run"):
        loaded(store).weights(trial)
    with pytest.raises(LoadError, match="no finished trial 'nobody'"):
        loaded(store).predictions("nobody")

    assert train(store, plan, ["weights"]) == ["done"] * 2
    assert len(store.read("trials", "kept")[0]) == 2, "without the flag nothing is trained again"
    assert train(store, plan, ["weights"], rerun_unkept=True) == ["done"] * 2
    study = loaded(store)
    assert study.trials["attempt"].tolist() == [2, 2] and len(study.weights(trial)) > 4
    assert [one.lacks for one in reconcile(plan, store, keep=["weights"], rerun_unkept=True)] == [(), ()]
    train(store, plan, ["weights"], rerun_unkept=True)
    assert len(store.read("trials", "kept")[0]) == 4, "a second time there is nothing to do"


@pytest.mark.slow
def test_training_does_not_depend_on_what_is_kept(store: Store, plan: Plan, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    train(store, plan, KEPT)
    train(other, plan, [])
    same = ["trial", "code_hash", "accuracy_last", "init_hash", "plan_hash"]
    kept, plain = (one.read("trials", "kept")[0].sort_values("trial")[same] for one in (store, other))
    assert kept.to_dict("list") == plain.to_dict("list")
    assert not [path for kind in KEPT for path in other.root.glob(f"{kind}/*/*")]


@pytest.mark.slow
def test_a_damaged_file_is_told_in_one_sentence(store: Store, plan: Plan) -> None:
    train(store, plan, ["predictions", "weights"])
    study, trial = loaded(store), plan.trials[0].id
    for kind in ("predictions", "weights"):
        path = study.kept_path(kind, trial)
        assert isinstance(path, Path)
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LoadError, match=r"predictions/.+ cannot be read \(.+\): remove it; --rerun-unkept") as raised:
        study.predictions(trial)
    assert "\n" not in str(raised.value)
    with pytest.raises(LoadError, match=r"weights/.+ cannot be used \(.+\): remove it; --rerun-unkept"):
        study.weights(trial)
    told = [problem for problem in examine(store)[1] if trial in problem]
    assert len(told) == 2 and all("--rerun-unkept" in problem for problem in told)


@pytest.mark.parametrize("flags", [["--keep", "logits"], ["--keep=weights,"]])
def test_what_cannot_be_kept_is_refused_before_anything_starts(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "robmix_ablation", "--preset", "smoke", "--storage", str(tmp_path), *flags])


def test_nothing_is_run_again_where_nothing_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "smoke", "--storage", str(tmp_path), "--rerun-unkept"]
    assert main(["plan", "robmix_ablation", *flags]) == 2
    assert "--rerun-unkept has nothing to keep: say what with --keep" in capsys.readouterr().err


def test_a_study_that_keeps_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="keep"):
        Study(name="kept", question="?", base=parse({"method": "supervised"}), keep=("logits",))


@pytest.mark.slow
def test_reading_what_is_kept_needs_no_torch() -> None:
    code = "import sys, lnl.storage.kept; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
