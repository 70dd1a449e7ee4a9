"""What makes a finished trial stale: code and data, looked at by their content; and what counts where both exist."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from analysis.results import Results, read_results, results_of_plan
from lnl import Contrast, Study, Trial, Validation, data
from lnl.cli import status as cli_status
from lnl.cli.doctor import examine
from lnl.search.confirm import confirmed
from lnl.search.searches import Searches
from lnl.storage.currency import (
    CHANGED_CODE,
    CHANGED_DATA,
    CHANGED_RULE,
    CHANGED_SOURCES,
    Sources,
    latest,
    sources_from,
    sources_text,
)
from lnl.storage.schema import TRIALS
from lnl.storage.store import Store
from lnl.storage.tables import write_rows
from lnl.study.parts import Search
from lnl.study.plan import Planned, plan_row, sources_of
from lnl.study.status import reconcile
from lnl.trial.code_hash import Tree, read_sources
from lnl.trial.provenance import Current
from tests.forked import WITHOUT_RAY, run_script

ROOT = Path(__file__).parents[2]
EARLIER = Path(__file__).parents[1] / "fixture" / "earlier"


def write_images(path: Path, seed: int = 0, classes: int = 2, count: int = 40) -> None:
    """An uncompressed .npz: two with equally many images have the same size in bytes."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count + 10, 8, 8), dtype=np.uint8)
    labels = np.arange(count + 10) % classes
    labels[-10:] %= 2
    np.savez(path, x_train=images[:-10], y_train=labels[:-10], x_test=images[-10:], y_test=labels[-10:], flip=False)


def write_cifar(root: Path, seed: int = 0, worse: int = 1, aggre: int = 1) -> None:
    """CIFAR-10 of 40 + 10 images, with human labels that are shifted by so many classes in the first images."""
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8), np.arange(50) % 10
    np.savez(root / "cifar10.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    human = {"clean": labels[:40], "aggre": labels[:40].copy(), "worse": labels[:40].copy()}
    for name, shift in (("aggre", aggre), ("worse", worse)):
        human[name][:20] = (human[name][:20] + shift) % 10
    np.savez(root / "cifar10n.npz", **human)


def write_folder(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(6):
                pixels = np.full((12, 12, 3), 20 * number + (100 if name == "cat" else 0), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


SMALL = {"network": "small_convnet", "epochs": 1, "steps": 1}
ARMS = {
    "plain": {"dataset": "npz:first.npz"},
    "gce": {"dataset": "npz:first.npz", "method": "gce"},
    "human": {"dataset": "cifar10", "noise": {"kind": "human", "column": "worse"}},
    "folder": {"dataset": "folder:pets?size=8"},
    "weights": {"dataset": "npz:first.npz", "weights": "weights.pt"},
    "transfer": {"dataset": "npz:first.npz", "init_from": {"method": "simclr", "dataset": "npz:second.npz"}},
    "taught": {
        "dataset": "npz:first.npz",
        "labels": 20,
        "noise": {"kind": "semantic", "teacher": {"labels": 10, "dataset": "npz:second.npz"}},
    },
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets, which is also where relative paths begin."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_images(folder / "first.npz")
    write_images(folder / "second.npz", seed=1)
    write_cifar(folder)
    write_folder(folder)
    torch.save({"weight": torch.zeros(1)}, folder / "weights.pt")
    return folder


def declare() -> Study:
    return Study(
        name="currency",
        question="What is current?",
        base=Trial(method="supervised", dataset="digits", **SMALL),
        arms=ARMS,
        replicates=2,
        contrasts=[Contrast("gce", against="plain")],
    )


def finish(store: Store, study: Study, root: Path, accuracy: float = 0.5, **changes: object) -> None:
    """Write a row for each trial of the plan as a worker would, with one more attempt where there is one."""
    plan, current = study.plan(), Current(root)
    for planned in plan.trials:
        row = {
            **{"trial": planned.id, "attempt": store.next_attempt(plan.study, planned.id), "preset": plan.preset},
            **{"arm": planned.arm, "setting": planned.setting, "replicate": planned.trial.replicate, "status": "ok"},
            **{"method": planned.trial.method_name, "dataset": planned.trial.dataset, "accuracy_last": accuracy},
            **{"noise_hash": "n", "split_hash": "s", "epochs_done": 1, "seconds": 1.0},
            **{"ended_at": pd.Timestamp.now("UTC")},
            **current.sources(planned.trial)._asdict(),
        }
        store.write_attempt(plan.study, {**row, **changes}, [])
    store.write_plan(plan_row(plan, None, current))


def stale(store: Store, study: Study, root: Path) -> dict[str, str]:
    """Arm -> what has changed, of the trials that are stale."""
    statuses = reconcile(study.plan(), store, Current(root))
    return {status.planned.arm: status.changed for status in statuses if status.state == "stale"}


def touch(path: Path) -> None:
    """The same content in another file of another time."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def replace_unnoticed(path: Path, write: Callable[[Path], None]) -> None:
    """Other content of the same size and with the old time of change, as `cp -p` and rsync leave it."""
    before = path.stat()
    write(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_back(root: Path) -> None:
    content = (root / "first.npz").read_bytes()
    write_images(root / "first.npz", seed=7)
    Current(root).sources(Trial(method="supervised", dataset="npz:first.npz"))  # another command looks meanwhile
    (root / "first.npz").write_bytes(content)


ON_FIRST = dict.fromkeys(("plain", "gce", "weights", "transfer", "taught"), CHANGED_DATA)
ON_CIFAR = {"human": CHANGED_DATA}
STARTS_FROM_SECOND = {"transfer": CHANGED_SOURCES, "initialisation: simclr": CHANGED_DATA}
TAUGHT_BY_SECOND = {"taught": CHANGED_SOURCES, "teacher: supervised": CHANGED_DATA}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda root: None, {}, id="nothing"),
        pytest.param(lambda root: write_images(root / "first.npz", seed=5), ON_FIRST, id="other images"),
        pytest.param(
            lambda root: write_images(root / "first.npz", classes=3), ON_FIRST, id="another number of classes"
        ),
        pytest.param(lambda root: touch(root / "first.npz"), {}, id="the same content in a new file"),
        pytest.param(
            lambda root: replace_unnoticed(root / "first.npz", lambda path: write_images(path, seed=5)),
            ON_FIRST,
            id="other images of the same size and time",
        ),
        pytest.param(put_back, {}, id="other images, then the first ones again"),
        pytest.param(
            lambda root: write_images(root / "second.npz", seed=5),
            STARTS_FROM_SECOND | TAUGHT_BY_SECOND,
            id="the data of prerequisites",
        ),
        pytest.param(lambda root: write_cifar(root, seed=5), ON_CIFAR, id="CIFAR-10 from another file"),
        pytest.param(lambda root: write_cifar(root, worse=2), {"human": CHANGED_SOURCES}, id="human labels"),
        pytest.param(lambda root: write_cifar(root, aggre=2), {}, id="human labels that no trial uses"),
        pytest.param(
            lambda root: Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(root / "pets/train/cat/0.png"),
            {"folder": CHANGED_DATA},
            id="one image of a folder",
        ),
        pytest.param(
            lambda root: shutil.copy(root / "pets/train/cat/0.png", root / "pets/train/cat/9.png"),
            {"folder": CHANGED_DATA},
            id="one image more in a folder",
        ),
        pytest.param(
            lambda root: torch.save({"weight": torch.ones(1)}, root / "weights.pt"),
            {"weights": CHANGED_CODE},
            id="weights under the same name",
        ),
        pytest.param(lambda root: (root / "first.npz").unlink(), {}, id="a data set that is not here"),
        pytest.param(lambda root: shutil.rmtree(root / "cache"), {}, id="the cache removed"),
    ],
)
def test_what_changed_and_which_trials_are_stale(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    expected: dict[str, str],
) -> None:
    store, study = Store(tmp_path / "results"), declare()
    finish(store, study, root)
    assert stale(store, study, root) == {}
    change(root)
    assert stale(store, study, root) == expected

    plan, current = study.plan(), Current(root)
    statuses = reconcile(plan, store, current)
    cli_status.print_plan(plan, statuses)
    lines = capsys.readouterr().out.splitlines()
    for status, line in zip(statuses, lines, strict=False):
        assert line.startswith(status.state) and (f"the {status.changed} changed" in line) == bool(status.changed), line
    assert f"{2 * len(expected)} stale" in lines[-1] if expected else "stale" not in lines[-1]

    left_out = {arm for arm, why in expected.items() if why != CHANGED_CODE and arm in ARMS}
    results = results_of_plan(store, plan.record, plan.hash, sources_of(plan, current))
    assert set(results.trials["arm"]) == ARMS.keys() - left_out, "no mean over other data"
    assert set(results.missing["arm"]) == left_out and set(results.missing["status"]) <= {"stale"}
    assert bool(results.on_other_data) == bool(left_out)
    assert ("left out" in lines[-1]) == bool(left_out)


def test_data_that_are_not_here_are_told_and_judge_nothing(root: Path, tmp_path: Path) -> None:
    study = declare()
    trials = [planned.trial for planned in study.plan().trials]
    assert Current(root).missing_data(trials) == []
    (root / "first.npz").unlink()
    (root / "cifar10.npz").unlink()
    shutil.rmtree(root / "cache")
    assert Current(root).missing_data(trials) == ["cifar10", "npz:first.npz"]
    human = next(planned.trial for planned in study.plan().trials if planned.arm == "human")
    assert Current(root).sources(human)[1:] == (None, None)


def test_a_replicate_on_new_data_never_stands_beside_those_on_the_old(root: Path, tmp_path: Path) -> None:
    """As it was seen: two replicates, the file is replaced, a third one is asked for."""
    store, study = Store(tmp_path / "results"), declare()
    finish(store, study, root, accuracy=0.9)
    write_images(root / "first.npz", seed=3, classes=3)
    longer = study.model_copy(update={"replicates": 3})
    plan, current = longer.plan(), Current(root)
    new = [one for one in plan.trials if one.trial.replicate == 2 and one.arm in ("plain", "gce")]
    for planned in new:
        row = {"trial": planned.id, "attempt": 1, "status": "ok", "accuracy_last": 0.3, "preset": plan.preset}
        about = {"dataset": planned.trial.dataset, "ended_at": pd.Timestamp.now("UTC"), "arm": planned.arm}
        store.write_attempt(plan.study, {**row, **about, **current.sources(planned.trial)._asdict()}, [])
    store.write_plan(plan_row(plan, None, current))
    with pytest.warns(UserWarning, match="made on data that have been replaced since"):
        results = read_results(tmp_path / "results", "currency")
    assert results.trials[results.trials["arm"] == "plain"]["accuracy_last"].tolist() == [0.3]
    assert results.trials.groupby("dataset")["data_hash"].nunique().max() == 1
    contrast = results.contrasts().iloc[0]
    assert contrast["n"] <= 1 and contrast["verdict"] == "no verdict"
    assert any("currency, preset base: " in problem and "left out" in problem for problem in examine(store)[1])

    finish(store, longer, root, accuracy=0.4)  # --rerun-stale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_results(tmp_path / "results", "currency").trials["accuracy_last"]) == {0.4}


def test_the_attempt_of_the_current_code_counts_wherever_it_stands(root: Path, tmp_path: Path) -> None:
    """Code A, then B for all trials, then A again: A's rows count, for every reader."""
    store, study = Store(tmp_path / "results"), declare()
    finish(store, study, root, accuracy=0.1)
    finish(store, study, root, accuracy=0.2, code_hash="code B")
    plan, current = study.plan(), Current(root)
    statuses = reconcile(plan, store, current)
    assert {(status.state, status.accuracy) for status in statuses} == {("done", 0.1)}
    store.write_plan(plan_row(plan, None, current))
    assert set(read_results(tmp_path / "results", "currency").trials["accuracy_last"]) == {0.1}
    of_b = {name: sources._replace(code_hash="code B") for name, sources in sources_of(plan, current).items()}
    assert set(results_of_plan(store, plan.record, plan.hash, of_b).trials["accuracy_last"]) == {0.2}


def frame(*rows: dict[str, object]) -> pd.DataFrame:
    columns = {name: pd.Series(dtype=object) for name in ("failure_class", "data_hash", "sources_hash")}
    return pd.DataFrame([{**dict.fromkeys(columns), "trial": "t", "status": "ok", **row} for row in rows])


NOW = Sources("2-code", "data", "all data")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (NOW._asdict(), ""),
        ({**NOW._asdict(), "code_hash": "2-other"}, CHANGED_CODE),
        ({**NOW._asdict(), "code_hash": "code"}, CHANGED_RULE),  # earlier version
        ({**NOW._asdict(), "code_hash": "3-code"}, CHANGED_RULE),  # later version
        ({**NOW._asdict(), "code_hash": "code", "data_hash": "other"}, CHANGED_DATA),
        ({**NOW._asdict(), "data_hash": "other", "sources_hash": "other"}, CHANGED_DATA),
        ({**NOW._asdict(), "sources_hash": "other"}, CHANGED_SOURCES),
        ({**NOW._asdict(), "code_hash": "other", "data_hash": "other"}, CHANGED_DATA),
        (
            {**NOW._asdict(), "data_hash": None, "sources_hash": None},
            "",
        ),  # diverged in its first epoch, earlier version
        ({**NOW._asdict(), "sources_hash": None}, ""),  # earlier version
        ({**NOW._asdict(), "data_hash": None, "sources_hash": "other"}, CHANGED_SOURCES),
    ],
)
def test_why_a_row_is_stale(row: dict[str, object], expected: str) -> None:
    assert latest(frame({**row, "attempt": 1}), {"t": NOW})["stale"].tolist() == [expected]
    assert latest(frame({**row, "attempt": 1}), {})["stale"].tolist() == [""], "nothing is known of now"
    unknown = Sources(str(row["code_hash"]), None, None)
    assert latest(frame({**row, "attempt": 1}), {"t": unknown})["stale"].tolist() == [""], "the data are not here"


def test_current_data_count_more_than_current_code_and_any_finished_attempt_more_than_an_accident() -> None:
    other_code, other_data = NOW._replace(code_hash="2-x"), NOW._replace(data_hash="x", sources_hash="x")
    attempts: Sequence[dict[str, object]] = (
        {**NOW._asdict(), "attempt": 1},
        {**other_code._asdict(), "attempt": 2},
        {**other_data._asdict(), "attempt": 3},
        {**NOW._asdict(), "attempt": 4, "status": "failed", "failure_class": "oom"},
    )
    for left, expected in ((attempts, 1), (attempts[1:], 2), (attempts[2:], 3), (attempts[3:], 4)):
        for order in (left, left[::-1]):
            assert latest(frame(*order), {"t": NOW})["attempt"].tolist() == [expected]


def test_what_a_plan_was_submitted_with_is_read_back() -> None:
    sources = {"a": NOW, "b": NOW, "s/e/arch": NOW._replace(data_hash=None)}
    assert sources_from(sources_text(sources)) == sources and sources_from(None) == {}
    assert len(json.loads(sources_text(sources))["sources"]) == 2, "each once"


def test_a_search_refuses_suggestions_of_other_data(root: Path, tmp_path: Path) -> None:
    base = Trial(
        method="supervised", dataset="npz:first.npz", validation=Validation(images=10, labels="noisy"), **SMALL
    )
    study = Study(name="searched", question="?", base=base, search=Search(suggestions=1), replicates=1)
    plan, store, current = study.plan(), Store(tmp_path / "results"), Current(root)
    searches = Searches(plan, store, current=current)
    planned = searches.next(1)
    assert isinstance(planned, Planned)
    row = {"trial": planned.id, "attempt": 1, "status": "ok", "epochs_done": 1, "seconds": 1.0}
    curve = {"epoch": 1, "step": 1, "split": "validation", "metric": "accuracy", "value": 0.5}
    sources = current.sources(planned.trial)._asdict()
    store.write_attempt("searched", {**row, **sources}, [{"trial": planned.id, "attempt": 1, **curve}])
    searches.ended(planned.id, {"outcome": "done"})
    searches.close()
    assert confirmed(plan, store, current).record.cells[0].finished == 1
    write_images(root / "first.npz", seed=9)
    assert confirmed(plan, store, Current(root)).record.cells[0].finished == 0, "no winner of other data"
    with pytest.raises(ValueError, match=r"search of arm 'base' have changed since 1 .* --new-search --search-seed"):
        Searches(plan, store, current=Current(root))
    again = study.plan(search={"seed": 1})
    Searches(again, store, new=True, current=Current(root)).close()


def test_results_of_an_earlier_version_are_read_and_stale_only_because_it_hashed_other_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows without `sources_hash`; those of the arm that diverged at once have no hashes at all."""
    shutil.copytree(EARLIER / "store", tmp_path / "store")
    namespace: dict[str, object] = {}
    exec((EARLIER / "study.py").read_text(encoding="utf-8"), namespace)
    study = namespace["study"]
    assert isinstance(study, Study)
    plan, store, current = study.plan(), Store(tmp_path / "store"), Current()
    states = {status.planned.id: status for status in reconcile(plan, store, current)}
    assert {status.changed for status in states.values()} == {CHANGED_RULE}, "for that only: it hashed other code"
    cli_status.print_plan(plan, list(states.values()))
    printed = capsys.readouterr().out
    assert printed.count("(stale: the rule for comparing code changed)") == len(states)
    assert f"the rule for comparing code of {len(states)} changed since" in printed and "left out" not in printed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = read_results(tmp_path / "store", "earlier")
    assert len(results.trials) == 8 and results.missing.empty and not results.remarks
    for path in (tmp_path / "store" / "trials").rglob("*.parquet"):  # the same rows, of this code
        row = pq.ParquetFile(path).read().to_pylist()[0]
        trial = next(planned.trial for planned in plan.trials if planned.id == row["trial"])
        path.unlink()
        write_rows(path, TRIALS, [{**row, "code_hash": current.sources(trial).code_hash}])
    assert {status.state for status in reconcile(plan, store, current)} == {"done"}


# ---------------------------------------------------------------------------------------------------- the code of a run


@pytest.mark.slow
def test_the_hash_is_that_of_the_text_that_was_there_when_the_process_began(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lnl", tmp_path / "lnl", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import pathlib, sys
from lnl.trial.code_hash import code_hash, snapshot
before = pathlib.Path("lnl/methods/mixup.py")
before.write_text(before.read_text(encoding="utf-8") + "\\nUSES = 'EDITED'\\n", encoding="utf-8")
print(code_hash("mixup"))
print((snapshot(pathlib.Path("copy")) / "lnl/methods/mixup.py").read_text(encoding="utf-8").count("EDITED"))
edited = pathlib.Path("lnl/functional/losses.py")
edited.write_text(edited.read_text(encoding="utf-8") + "\\nEDITED = 1\\n", encoding="utf-8")
import lnl.functional.losses
try:
    snapshot(pathlib.Path("another"))
except RuntimeError as error:
    print(error)
"""
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    code, edits, refusal = done.stdout.splitlines()
    assert code == Tree(read_sources(ROOT)).hash("mixup") and edits == "0"
    assert refusal == f"{tmp_path / 'lnl/functional/losses.py'} has changed since this process started: start it again."


STUDY = """
from lnl import Study, Trial
study = Study(
    name="edited", question="?",
    base=Trial(method="supervised", dataset="{data}", network="small_convnet", labels=20, epochs={epochs}, steps=2),
    arms={arms}, replicates={replicates},
)
if __name__ == "__main__":
    study.main()
"""


class Lab:
    """A copy of the package, a data set and a study, for processes that train for real."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, folder / "edited.py"
        for package in ("lnl", "analysis"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        write_images(folder / "images.npz")

    def declare(self, replicates: int = 1, epochs: int = 1, arms: object = None) -> None:
        text = STUDY.format(
            data=f"npz:{self.folder / 'images.npz'}", arms=arms or {"base": {}}, replicates=replicates, epochs=epochs
        )
        self.study.write_text(text, encoding="utf-8")

    def edit(self, module: str, before: str, after: str) -> None:
        path = self.folder / "lnl" / module
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")

    def command(self, *flags: str) -> list[str]:
        return [str(self.study), "--no-report", *flags]

    @property
    def environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "LNL_DATA": str(self.folder / "data")}
        return environment | {"OMP_NUM_THREADS": "1", "LNL_STORAGE": str(self.folder / "results")}

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """A run with a Ray of its own."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        command = [sys.executable, *self.command("--address", "local", "--cpus", "1", *flags)]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes)

    def run(self, *flags: str) -> str:
        """What a run says that trains in its own process, see `tests.without_ray`."""
        done = run_script([WITHOUT_RAY, *self.command(*flags)], self.environment, self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self) -> pd.DataFrame:
        return Store(self.folder / "results").read("trials", "edited")[0].sort_values(["attempt", "replicate"])

    def results(self) -> Results:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_results(self.folder / "results", "edited")


@pytest.mark.slow
def test_replaced_data_from_the_first_plan_to_the_last_row(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.declare(replicates=2)
    lab.run()
    write_images(lab.folder / "images.npz", seed=4, classes=3)
    lab.declare(replicates=3)
    plan = lab.run("--plan")
    assert "2 stale, 1 missing" in plan and plan.count("(stale: the data set changed)") == 2
    lab.run()
    assert len(lab.results().trials) == 1 and lab.rows()["data_hash"].nunique() == 2
    output = lab.run("--rerun-stale")
    assert "3 trials: 3 done." in output
    trials = lab.results().trials
    assert len(trials) == 3 and trials["data_hash"].nunique() == 1 and set(trials["classes"]) == {3}


@pytest.mark.slow
def test_code_that_is_put_back_counts_again_without_training(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.declare()
    lab.run()
    lab.edit("methods/supervised.py", "learning_rate=0.03", "learning_rate=0.02")
    assert "(stale: the code changed)" in lab.run("--plan")
    lab.run("--rerun-stale")
    assert lab.results().trials["attempt"].tolist() == [2]
    lab.edit("methods/supervised.py", "learning_rate=0.02", "learning_rate=0.03")
    output = lab.run("--rerun-stale")
    assert "1 trials: 1 done." in output and "stale" not in output and len(lab.rows()) == 2
    assert lab.results().trials["attempt"].tolist() == [1]


@pytest.mark.long
def test_code_that_is_edited_while_a_run_lives_changes_nothing_of_it(tmp_path: Path) -> None:
    """One method is running and another has not been imported by any worker when both files change."""
    lab = Lab(tmp_path)
    lab.declare(epochs=60, arms={"running": {}, "waiting": {"method": "gce"}})
    process = lab.start()  # one after the other
    leases = lab.folder / "results" / "leases"
    deadline = time.monotonic() + 120
    while not list(leases.rglob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(leases.rglob("*.json")), "the first trial is in training"
    lab.edit("methods/supervised.py", "def train_epoch(self", "EDITED = 1\n\n    def train_epoch(self")
    lab.edit("methods/gce.py", "def train_epoch(self", "raise RuntimeError('edited')\n\n    def train_epoch(self")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    rows = lab.rows().set_index("arm")
    assert rows["status"].tolist() == ["ok", "ok"]
    sources = read_sources(ROOT)
    assert rows["code_hash"].to_dict() == {
        "running": Tree(sources).hash("supervised"),
        "waiting": Tree(sources).hash("gce"),
    }


def test_a_machine_with_other_data_trains_nothing(root: Path, tmp_path: Path) -> None:
    from lnl.execution.job import Job, RunSettings
    from lnl.execution.worker import execute

    trial = Trial(method="supervised", dataset="npz:first.npz", **SMALL)
    store, sources = Store(tmp_path / "results"), Current(root).sources(trial)
    known = {"trial": trial.model_dump(mode="json"), "arm": "base", "setting": "{}", "study": "there", "preset": "base"}
    known |= {
        "store": store.identity(),
        "run": "this run",
        "sources": sources,
        "plan_hash": "",
        "embeddings": 0,
        "selection": "last",
    }
    job = Job(**{**dict.fromkeys(Job.__dataclass_fields__, None), **known, "prerequisite": False, "rerun_stale": False})
    assert Job.from_text(job.to_text()) == job
    write_images(root / "first.npz", seed=8)
    reports: list[dict[str, object]] = []
    execute(job, RunSettings(storage=store.root, data=root, gpus_per_trial=0), reports.append)
    assert [report["outcome"] for report in reports] == ["storage"]
    message = str(reports[0]["message"])
    assert "another version of the data set npz:first.npz" in message and sources.data_hash in message
    assert store.read("trials")[0].empty
    assert data.load("npz:first.npz", root).checksum in message
