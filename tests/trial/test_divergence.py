"""Divergence is an outcome whenever it happens: chance of the trial's own classes, and the test that the draws allow.

Real trials, whose weights a patched `train_epoch` spoils at the end of a given epoch: what is under test (the run, the
worker, the rows, statistics, terminal and page) is all there.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch import nn

from analysis import load, statistics
from lnl import Contrast, Study, methods
from lnl.cli import status
from lnl.cli.progress import interval
from lnl.execution import attempt, worker
from lnl.execution import job as execution_job
from lnl.search.scores import score_of
from lnl.storage.plan_record import SearchRecord
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned
from lnl.study.status import reconcile
from lnl.trial.config import Trial, parse
from lnl.trial.divergence import Diverged
from lnl.trial.provenance import Current
from lnl.trial.run import Execution, run

EARLIER = Path(__file__).parents[1] / "fixture" / "earlier"
EPOCHS = 3
SPOILS = {f"epoch_{epoch}": {"method.optimizer.weight_decay": epoch * 1e-9} for epoch in range(1, EPOCHS + 1)}
ARMS = {"plain": {}, **SPOILS, "diverges": {"method.optimizer.learning_rate": 1e30}}

Spoil = Callable[[nn.Module], None]


def to_nan(network: nn.Module) -> None:
    for tensor in network.parameters():
        tensor.data.fill_(torch.nan)


def to_huge(network: nn.Module) -> None:
    """Weights that are finite, but of which no sum is."""
    for tensor in network.parameters():
        tensor.data.fill_(3e38)


def images(path: Path, classes: int) -> str:
    """A data set of so many classes, whose images show their class."""
    draw = np.random.default_rng(classes)

    def part(each: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), each)
        found = draw.integers(0, 160, (len(labels), 8, 8), dtype=np.uint8)
        found[np.arange(len(labels)), labels // 8 % 8, labels % 8] = 255
        return found, labels

    (x_train, y_train), (x_test, y_test) = part(6), part(1 + 60 // classes)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, flip=False)
    return f"npz:{path}"


def declare(dataset: str, **fields: Any) -> Study:
    small = {"network": "small_convnet", "epochs": EPOCHS, "steps": 4, "noise": {"kind": "symmetric", "rate": 0.4}}
    base = parse({"method": "supervised", "dataset": dataset, **small})
    base = base.override({"method.batch_size": 32, "method.optimizer.learning_rate": 0.01})
    contrasts = [Contrast(arm, against="plain") for arm in ARMS if arm != "plain"]
    declared = {"name": "divergence", "question": "?", "arms": ARMS, "contrasts": contrasts, "replicates": 4}
    return Study(base=base, **{**declared, **fields})


def execute(store: Store, plan: Plan, planned: Planned) -> dict[str, Any]:
    """As a Ray worker does; its last report."""
    about = {
        **{"trial": planned.trial.model_dump(mode="json"), "arm": planned.arm, "setting": planned.setting},
        **{"prerequisite": planned.prerequisite, "store": store.identity(), "run": "this run", "study": plan.study},
        **{"preset": plan.preset, "plan_hash": plan.hash, "sources": Current().sources(planned.trial)},
        **{"selection": plan.record.selection, "embeddings": 0, "rerun_stale": False},
    }
    reports: list[dict[str, Any]] = []
    job = execution_job.Job(**{**dict.fromkeys(execution_job.Job.__dataclass_fields__), **about})
    worker.execute(job, execution_job.RunSettings(storage=store.root, gpus_per_trial=0), reports.append)
    return reports[-1]


def submit(store: Store, plan: Plan) -> None:
    about = {
        "study": plan.study,
        "preset": plan.preset,
        "plan_hash": plan.hash,
        "plan": json.dumps(plan.record.as_json()),
    }
    store.write_plan({**about, "submitted_at": pd.Timestamp.now("UTC")})


# ----------------------------------------------------------------------------------- the same test, whenever it happens


@pytest.fixture(scope="module", params=[2, 10, 100])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Plan, Store]]:
    """A study of which replicates 0 and 1 of three arms diverge in the first, the middle and the last epoch; truly."""
    folder = tmp_path_factory.mktemp(f"classes-{request.param}")
    plan, store = declare(images(folder / "images.npz", request.param)).plan(), Store(folder / "results")
    method = methods.load("supervised").Method
    trained = method.train_epoch

    def train_epoch(self: Any, epoch: int) -> dict[str, torch.Tensor]:
        scalars: dict[str, torch.Tensor] = trained(self, epoch)
        if epoch + 1 == round(self.config.optimizer.weight_decay / 1e-9) and self.streams.replicate < 2:
            to_nan(self.learner.network)
        return scalars

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "train_epoch", train_epoch)
        for planned in plan.trials:
            assert execute(store, plan, planned)["outcome"] == "done"
    submit(store, plan)
    yield request.param, plan, store


@pytest.mark.slow
def test_rows_of_diverged_trials_have_the_facts_of_their_draw(ran: tuple[int, Plan, Store]) -> None:
    classes, _, store = ran
    rows, _ = store.read("trials", "divergence")
    assert set(rows["classes"]) == {classes}
    for _, group in rows.groupby("replicate"):
        for name in ("data_hash", "noise_hash", "split_hash", "unlabelled_hash", "init_hash"):
            assert group[name].nunique() == 1 and group[name].notna().all()
    assert all(len(json.loads(text)) == classes for text in rows["transition"])
    lost = rows[rows["failure_class"] == "nan"].groupby("arm")["epochs_done"].agg(["size", "max"])
    assert lost.to_dict("index") == {
        **{f"epoch_{epoch}": {"size": 2, "max": epoch - 1} for epoch in range(1, EPOCHS + 1)},
        "diverges": {"size": 4, "max": 0},
    }
    assert set(rows["status"]) == {"ok", "failed"} and rows["trial"].is_unique, "none is tried again"


@pytest.mark.slow
def test_the_test_is_the_paired_one_and_a_diverged_replicate_is_chance(ran: tuple[int, Plan, Store]) -> None:
    classes, _, store = ran
    study = load(store.root, "divergence")
    scores = study.trials.pivot(index="replicate", columns="arm", values="accuracy_last")
    frame = study.contrasts().set_index("arm")
    for arm in ARMS.keys() - {"plain"}:
        row, values = frame.loc[arm], scores[arm].fillna(1 / classes)
        theirs = scipy.stats.ttest_rel(values, scores["plain"])
        assert row["paired"] and row["reason"] == statistics.HASHES_AGREE and (row["n"], row["n_against"]) == (4, 4)
        assert row["difference"] == pytest.approx((values - scores["plain"]).mean())
        assert np.isfinite(row["p"]) and row["p"] == pytest.approx(theirs.pvalue)
        assert row["diverged"] == (4 if arm == "diverges" else 2)


@pytest.mark.slow
def test_terminal_json_and_page_have_one_number(ran: tuple[int, Plan, Store]) -> None:
    classes, plan, store = ran
    study, statuses = load(store.root, "divergence"), reconcile(plan, store)
    page = statistics.arm_table(study.trials, "plain", [], "last").set_index("arm")
    for arm, done, running, failed, shown in status.arm_rows(statuses):
        lost = {"plain": 0, "diverges": 4}.get(arm, 2)
        assert done == "4/4" + f", {lost} diverged" * bool(lost) and (running, failed) == ("0", "0")
        mine = study.trials[study.trials["arm"] == arm]
        assert shown == interval(statistics.accuracy(mine, "last").tolist())
        assert shown.startswith(f"{100 * page.loc[arm, 'mean']:.1f} ") and page.loc[arm, "n"] == 4
    told = pd.DataFrame(status.as_json(plan, statuses, store, Current())["trials"])
    assert (told.loc[told["diverged"], "accuracy"] == 1 / classes).all() and told["diverged"].sum() == 10


@pytest.mark.slow
def test_a_search_counts_divergence_as_the_same_chance(ran: tuple[int, Plan, Store]) -> None:
    classes, plan, store = ran
    search = SearchRecord(suggestions=1, selection="last")
    searching = replace(plan, record=plan.record.model_copy(update={"search": search}))
    for planned in plan.trials:
        if planned.arm == "diverges":
            found = score_of(store, searching, planned.trial, Current())
            assert found is not None and found.diverged and found.accuracy == 1 / classes


# ------------------------------------------------------------------------------------------- what is seen, and by whom


def spoil_after(monkeypatch: pytest.MonkeyPatch, trial: Trial, spoil: Callable[[Any], object], epoch: int) -> None:
    """Let `spoil(method)` follow the last step of an epoch (from 1)."""
    method = methods.load(trial.method_name).Method
    trained = method.train_epoch

    def train_epoch(self: Any, now: int) -> dict[str, torch.Tensor]:
        scalars: dict[str, torch.Tensor] = trained(self, now)
        if now + 1 == epoch:
            spoil(self)
        return scalars

    monkeypatch.setattr(method, "train_epoch", train_epoch)


def statistics_to_infinity(method: Any) -> None:
    next(buffer for name, buffer in method.learner.network.named_buffers() if "running_var" in name).fill_(torch.inf)


def overflowing(method: Any) -> None:
    to_huge(method.learner.network)


@pytest.mark.parametrize(
    ("name", "changes", "spoil", "says"),
    [
        ("supervised", {}, lambda method: to_nan(method.learner.network), "Weights"),
        ("supervised", {}, statistics_to_infinity, "Weights"),
        ("supervised", {}, overflowing, "class probabilities are no finite numbers"),
        ("mixmatch", {}, lambda method: to_nan(method.learner.average), "Weights"),
        ("co_teaching", {}, lambda method: to_nan(method.second.network), "Weights"),  # only the first one predicts
        ("byol", {}, lambda method: to_nan(method.target), "Weights"),
        ("dividemix", {}, lambda method: to_nan(method.first.network), "Weights"),
        ("simclr", {}, lambda method: to_nan(method.learner.network), "Weights"),
        ("simclr", {}, overflowing, "a linear probe needs finite features"),
        ("simclr", {"method.evaluation": "neighbours"}, overflowing, "class probabilities are no finite numbers"),
        ("rog", {}, overflowing, "class probabilities are no finite numbers"),
    ],
)
def test_numbers_that_break_in_the_very_last_step_are_divergence(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, name: str, changes: Any, spoil: Callable[[Any], object], says: str
) -> None:
    trial = tiny(name, {"epochs": 2, "steps": 1, **changes})
    spoil_after(monkeypatch, trial, spoil, trial.total_epochs)
    seen = []
    with pytest.raises(Diverged, match=rf"{says}.*lower the learning rate") as error:
        for row in run(trial, Execution(embeddings=10)):
            seen.append(row.epoch)
    assert seen == list(range(1, trial.total_epochs)) and f"epoch {trial.total_epochs}" in str(error.value)


NAN_IS_SEEN = {  # what a library says of NaN
    "scikit-learn": ValueError("Input X contains NaN.\nGaussianMixture does not accept missing values."),
    "torch": RuntimeError("probability tensor contains either `inf`, `nan` or element < 0"),
    "an assertion": AssertionError(),
}


@pytest.mark.parametrize("error", NAN_IS_SEEN.values(), ids=list(NAN_IS_SEEN))
@pytest.mark.parametrize("where", ["train_epoch", "predict", "features", "beliefs"])
@pytest.mark.parametrize("spoil", [to_nan, to_huge, None], ids=["NaN", "overflowing", "finite"])
def test_an_error_is_divergence_where_weights_are_not_finite_and_else_the_codes(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str, spoil: Spoil | None
) -> None:
    """Seen by a library in training, evaluation, diagnosis or embedding: what it raises tells nothing by itself."""
    trial = tiny("supervised", {"epochs": 1, "steps": 1})

    def raising(self: Any, *arguments: Any) -> Any:
        if spoil:
            spoil(self.learner.network)
        raise error

    monkeypatch.setattr(methods.load("supervised").Method, where, raising, raising=False)
    expected = Diverged if spoil else type(error)
    with pytest.raises(expected) as found:
        list(run(trial, Execution(embeddings=10)))
    if spoil:
        what = str(error).splitlines()[0] if str(error) else "AssertionError"
        assert str(found.value) == f"Training broke down in epoch 1 ({what}): lower the learning rate."


def test_an_accident_stays_one_though_weights_are_not_finite(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(self: Any, epoch: int) -> Any:
        to_nan(self.learner.network)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(methods.load("supervised").Method, "train_epoch", raising)
    with pytest.raises(torch.OutOfMemoryError):
        next(run(tiny("supervised")))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), KeyError("bug")], ids=["oom", "code_error"])
def test_an_attempt_that_fails_in_its_first_epoch_has_the_facts_of_its_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    plan, store = declare("digits", arms={"plain": {}}, contrasts=[], replicates=1).plan(), Store(tmp_path)

    def raising(self: Any, *arguments: Any) -> Any:
        raise error

    method = methods.load("supervised").Method
    for name, known in (("__init__", pd.isna), ("train_epoch", pd.notna)):  # of the network, once there is one
        with monkeypatch.context() as patch:
            patch.setattr(method, name, raising)
            assert execute(store, plan, plan.trials[0])["outcome"] == "failed"
        row = store.read("trials", "divergence")[0].sort_values("attempt").iloc[-1]
        assert row["failure_class"] == ("oom" if isinstance(error, torch.OutOfMemoryError) else "code_error")
        assert row["classes"] == 10 and row[[*statistics.PAIRING_HASHES, "unlabelled_hash", "transition"]].notna().all()
        assert known(row["init_hash"]) and known(row["parameters"])


def test_weights_that_are_broken_from_the_start_are_no_divergence(tiny: Any, tmp_path: Path) -> None:
    (row,) = run(tiny("supervised", {"epochs": 1}))
    state = {
        name.removeprefix("backbone."): tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor
        for name, tensor in row.snapshot()["parts"]["learner"]["network"].items()
        if name.startswith("backbone.")
    }
    torch.save(state, path := tmp_path / "weights.pt")
    with pytest.raises(Exception, match="The weights that training starts from are no finite numbers") as error:
        next(run(tiny("supervised", {"weights": str(path)})))
    assert attempt.failure_of(error.value)[0] == "data_error"


# --------------------------------------------------------------------------------------------------- earlier results


def test_results_of_earlier_versions_count_the_same(tmp_path: Path) -> None:
    """Their early divergence has neither hashes nor a number of classes: ten by the rows of the other arms."""
    shutil.copytree(EARLIER / "store", tmp_path / "store")
    study = load(tmp_path / "store", "earlier")
    lost = study.trials[study.trials["arm"] == "diverges"]
    assert lost["data_hash"].isna().all() and statistics.accuracy(lost, "last").tolist() == [0.1, 0.1]
    statuses = reconcile(runpy.run_path(str(EARLIER / "study.py"))["study"].plan(), Store(tmp_path / "store"))
    rows = {row[0]: row for row in status.arm_rows(statuses)}
    assert rows["diverges"][1] == "2/2, 2 diverged" and rows["diverges"][4] == "10.0 ± 0.0 (n=2)"
    frame = study.contrasts().set_index("arm")
    assert frame["verdict"].tolist() == ["no verdict", "no verdict"] and frame.loc["gce", "paired"]
    assert not frame.loc["diverges", "paired"] and "absent" in frame.loc["diverges", "reason"]


def test_terminal_and_json_say_no_verdict_as_the_page_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EARLIER / "store", tmp_path / "store")
    store = Store(tmp_path / "store")
    plan = runpy.run_path(str(EARLIER / "study.py"))["study"].plan()
    found = status.as_json(plan, reconcile(plan, store), store, Current())["contrasts"]
    assert [row["verdict"] for row in found] == ["no verdict", "no verdict"]
    status.print_verdicts(found, [])
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"no verdict .* 2 replicates are too few: a verdict needs 4$", line) for line in lines), lines
