"""What trials print is kept, bounded, without secrets, and one command away."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lnl.cli.main import main
from lnl.execution import attempt, worker
from lnl.execution import job as execution_job
from lnl.storage import logs
from lnl.storage.logs import HALF, Output
from lnl.storage.secrets import mask, masked
from lnl.storage.store import Store
from lnl.trial import provenance
from lnl.trial.config import Trial

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf_3k9dQz81LmP0",
    "aws_secret_access_key": 'wJalr/"XUtnF\\EMI é',
    "SIGNING_KEY": "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\n-----END KEY-----",
    "LNL_OPTUNA": "postgresql://lnl:pgp4ssw0rd@db/optuna",  # no telling name
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def assert_clean(text: str) -> None:
    for secret in ("hf_3k9d", "wJalr", "MIIEp", "pgp4ss", "hunter2"):
        assert secret not in text, f"{secret} in {text}"


# ------------------------------------------------------------------------------------------------------------ secrets


@pytest.mark.usefixtures("planted")
def test_secrets_are_masked_in_every_spelling() -> None:
    for value in SECRETS.values():
        for text in (value, json.dumps({"a": value}), json.dumps([value], ensure_ascii=False), repr([value])):
            assert_clean(mask(text))
    assert_clean(mask(f"cannot connect to {SECRETS['LNL_OPTUNA']}: password 'pgp4ssw0rd' is wrong"))
    assert mask("to mlflow at https://me:hunter2@host/x") == "to mlflow at https://me:***@host/x"


@pytest.mark.usefixtures("planted")
def test_nothing_else_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("KEYMAP", "us")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    text = 'it is false that us users fail: {"a":"http://h:1","b":"x@y"} s3://bucket/key postgresql://user@host/name'
    assert mask(text) == text
    assert masked({"n": 3, "x": [None, ("hf_3k9dQz81LmP0", 0.5)]}) == {"n": 3, "x": [None, ["***", 0.5]]}


def test_a_short_secret_is_masked_as_a_word_and_not_inside_names_and_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_KEY_NAME", "digits")
    monkeypatch.setenv("A_TOKEN", "abcdef12")
    text = "trial 0abcdef12345 of digits_cnn in results/mydigits"
    assert mask(text) == text
    for spelling in ("is abcdef12.", "'abcdef12'", "a\\nabcdef12", "?x%3Dabcdef12&y", "abcdef12"):
        assert "abcdef12" not in mask(spelling), spelling


def test_what_is_masked_is_never_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable whose name has KEY in it holds a preset's name: its looks made results forget their error control."""
    from analysis.results import looks_taken
    from lnl.execution.sequential import check_looks
    from lnl.study.parts import Contrast
    from lnl.study.study import Study

    monkeypatch.setenv("SSH_KEY_NAME", "digits")
    monkeypatch.setenv("ANOTHER_KEY", "frozen_head")
    study = Study(
        name="quick",
        question="?",
        base=small(),
        arms={"full": {}, "frozen_head": {"method.batch_size": 8}},
        contrasts=[Contrast("frozen_head", against="full")],
        presets={"digits": {}},
    )
    store, plan = Store(tmp_path), study.plan("digits", looks=(4, 6))
    seen = [{"arm": "frozen_head", "against": "full", "verdict": "helps", "looked": 4}]
    family = {"selection": "last", "family": plan.record.as_json()["contrasts"]}
    store.write_event("quick", "looked", preset="digits", plan=plan.hash, looks=[4, 6], **family, contrasts=seen)
    assert [look["contrasts"] for look in looks_taken(store, "quick", "digits")] == [seen]
    check_looks(store, plan)
    with pytest.raises(ValueError, match="already judged at the declared looks 4, 6"):
        check_looks(store, study.plan("digits", looks=(4, 8)))


@pytest.mark.usefixtures("planted")
def test_what_people_read_of_an_event_is_masked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_event("quick", "run_ended", run="a", stopped=f"no answer from {SECRETS['LNL_OPTUNA']}", seconds=1.0)
    store.write_event("quick", "checkpoint_refused", "t", reason=f"it holds {SECRETS['HF_TOKEN']}")
    rows, _ = store.read("events")
    for text in rows["payload"]:
        assert_clean(text)
    assert any("no answer from postgresql://lnl:***@db/optuna" in text for text in rows["payload"])


# ------------------------------------------------------------------------------------------------------------- output


def test_what_is_printed_warned_and_logged_is_kept_and_everything_is_restored() -> None:
    before = (sys.stdout, sys.stderr, list(logging.getLogger().handlers))
    with pytest.raises(RuntimeError), Output() as output:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        logging.getLogger("somebody").warning("a log line")
        raise RuntimeError("the end")
    assert (sys.stdout, sys.stderr, list(logging.getLogger().handlers)) == before
    print("afterwards")
    text = output.text()
    assert text.startswith("to stdout\nto stderr\nWARNING somebody: a log line\n")
    assert text.endswith("RuntimeError: the end\n")


def test_warnings_are_kept() -> None:
    code = "import warnings; from lnl.storage.logs import Output\n"
    code += "with Output() as o: warnings.warn('odd')\nprint(o.text())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, cwd=ROOT)
    assert "UserWarning: odd" in done.stdout and not done.stderr


@pytest.mark.slow
def test_a_long_output_keeps_its_beginning_and_its_end_in_whole_lines() -> None:
    with Output() as output:
        for number in range(300_000):
            print(f"line {number} ends")
    lines = output.text().splitlines()
    assert len(output.text()) <= 2 * HALF + 100
    assert lines[0] == "line 0 ends" and lines[-1] == "line 299999 ends"
    odd = [line for line in lines if not re.fullmatch(r"line \d+ ends", line)]
    assert len(odd) == 1 and "are left out here" in odd[0]


def test_half_a_secret_at_the_cut_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_TOKEN", "0123456789abcdef")
    monkeypatch.setattr(logs, "HALF", 100)
    for shift in range(0, 40, 3):
        with Output() as output:
            print("x" * shift, *["0123456789abcdef\n"] * 40)
        Store(tmp_path).write_log("quick", "t", shift, output.text())
        assert "456789" not in Store(tmp_path).log_path("quick", "t", shift).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- trials


def job_of(store: Store, trial: Trial, **changes: Any) -> execution_job.Job:
    """Of a study that has this trial alone."""
    from dataclasses import fields

    known = {
        "trial": trial.model_dump(mode="json"),
        "arm": "full",
        "setting": "{}",
        "store": store.identity(),
        "run": "this run",
        "study": "quick",
        "preset": "base",
        "sources": provenance.Current().sources(trial),
        "embeddings": 0,
        "selection": "last",
        "prerequisite": False,
        "rerun_stale": False,
    }
    names = [field.name for field in fields(execution_job.Job)]
    return execution_job.Job(**{name: {**known, **changes}.get(name) for name in names})


def execute(store: Store, job: execution_job.Job) -> dict[str, Any]:
    reports: list[dict[str, Any]] = []
    worker.execute(job, execution_job.RunSettings(storage=store.root, gpus_per_trial=0), reports.append)
    return reports[-1]


def small(**changes: Any) -> Trial:
    trial = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1)
    return trial.override({"method.batch_size": 16, **changes})


@pytest.mark.usefixtures("planted")
def test_no_secret_reaches_a_file_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that prints its environment and dies of it; events; plans and rows as ever."""

    def run(*_: Any) -> Iterator[Any]:
        print(os.environ)
        print("pw", SECRETS["LNL_OPTUNA"])
        logging.getLogger("x").error(SECRETS["HF_TOKEN"])
        raise RuntimeError(f"401 from https://me:hunter2@host for {SECRETS['HF_TOKEN']} and {dict(os.environ)!r}")
        yield

    store = Store(tmp_path)
    monkeypatch.setattr(attempt, "run", run)
    last = execute(store, job_of(store, small()))
    assert last["outcome"] == "failed" and last["message"].startswith("RuntimeError: 401 from https://me:***@host")
    assert_clean(last["message"])
    store.write_event("quick", "lost", None, reason=f"no answer from {SECRETS['LNL_OPTUNA']}")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.parent.name for path in files} >= {"trials", "logs"} and len(files) >= 4
    for path in files:
        assert_clean(path.read_bytes().decode(errors="replace"))
    frames = [store.read(table)[0] for table in ("trials", "events")]
    assert_clean(" ".join(str(value) for frame in frames for value in frame.to_numpy().ravel()))
    assert_clean(frames[0]["failure_message"].iloc[0])
    text = next(tmp_path.glob("logs/study=quick/*-1.txt")).read_text(encoding="utf-8")
    assert "HF_TOKEN': '***'" in text and "ERROR x: ***" in text and "Traceback" in text


def test_only_who_has_something_to_say_has_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one process, as workers are used again; prerequisites too."""
    store = Store(tmp_path)
    quiet, broken = small(), small(method="mixmatch", labels=1437)
    assert execute(store, job_of(store, broken, arm="broken"))["outcome"] == "failed"
    assert execute(store, job_of(store, quiet))["outcome"] == "done"
    assert execute(store, job_of(store, broken, arm="broken", prerequisite=True))["outcome"] == "failed"
    found = sorted(path.stem for path in tmp_path.glob("logs/study=quick/*"))
    assert found == [f"{broken.id}-1", f"{broken.id}-2"]
    assert not capsys.readouterr().out

    storage = ["--storage", str(tmp_path)]
    assert main(["logs", "quick", *storage]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{broken.id} attempt 1  broken, replicate 0  data_error: The method draws from")
    assert lines[0].endswith(f"lnl logs quick {broken.id} --storage {tmp_path}")
    assert len(lines) == 3 and lines[-1] == "2 of 3 attempts failed."

    assert main(["logs", "quick", broken.id[:6], *storage]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- ") == 2 and shown.count("Traceback") == 2 and "draw from" not in shown.splitlines()[1]
    assert main(["logs", "quick", quiet.id, *storage]) == 0
    assert capsys.readouterr().out == f"--- {quiet.id} attempt 1  full, replicate 0  ok\nIt printed nothing.\n"


def test_who_only_printed_is_listed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    rows = {"talks": "ok", "silent": "ok", "lost": "preempted", "older": "failed"}
    for trial, status in rows.items():
        row = {"trial": trial, "attempt": 1, "preset": "base", "arm": "full", "setting": "{}", "replicate": 0}
        failure = {"failure_class": "oom", "failure_message": "Out of memory.\nMore"} if status == "failed" else {}
        store.write_attempt("quick", {**row, "status": status, **failure}, [])
    store.write_log("quick", "talks", 1, "hello\n")
    store.write_log("quick", "crashed", 1, "a log without a row\n")
    storage = ["--storage", str(tmp_path)]

    assert main(["logs", "quick", *storage]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"crashed attempt 1  no row  lnl logs quick crashed{' '.join(['', *storage])}",
        "lost attempt 1  full, replicate 0  preempted  no log",
        "older attempt 1  full, replicate 0  oom: Out of memory.  no log",
        "3 of 5 attempts failed; 1 more printed something (--all).",
    ]
    assert main(["logs", "quick", "--all", "--arm", "full", *storage]) == 0
    out = capsys.readouterr().out
    assert "talks attempt 1  full, replicate 0  ok  lnl logs quick talks" in out and "silent" not in out
    assert main(["logs", "quick", "older", *storage]) == 0
    assert "Out of memory.\nMore" in capsys.readouterr().out, "rows from before there were logs"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quick", "zz"], "No trial of study 'quick' begins with 'zz'"),
        (["quick", "a"], "2 trials begin with 'a': give more of aa, ab."),
        (["quick", "--arm", "none"], "is of arm 'none'"),
        (["quack"], "has no attempt of study 'quack'"),
    ],
)
def test_a_mistake_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    for trial in ("aa", "ab"):
        row = {"trial": trial, "attempt": 1, "arm": "full", "setting": "{}", "replicate": 0, "status": "ok"}
        Store(tmp_path).write_attempt("quick", row, [])
    assert main(["logs", *arguments, "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_copies_of_logs_are_told_and_are_no_attempts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    for number in (1, 2):
        store.write_log("quick", "crashed", number, "a log without a row\n")
    for name in ("crashed-1 (conflicted copy).txt", "notes.txt"):
        (tmp_path / "logs" / "study=quick" / name).write_text("mine", encoding="utf-8")
    assert main(["logs", "quick", "--storage", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 of 2 attempts failed."
    assert err.splitlines() == [
        f"unreadable and left out: logs/study=quick/{name} (its name is no attempt's)"
        for name in ("crashed-1 (conflicted copy).txt", "notes.txt")
    ]


def test_a_store_and_parts_whose_names_are_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial is trained and every command shows what it can of the names."""
    root = tmp_path / os.fsdecode(b"r\xe9s")
    store, trial = Store(root), small()
    assert execute(store, job_of(store, trial))["outcome"] == "done"
    odd = root / "trials" / "study=quick" / os.fsdecode(b"x-\xe9.parquet")
    odd.write_bytes(b"")
    storage = ["--storage", str(root)]
    assert main(["doctor", *storage]) == 1
    assert "left out trials/study=quick/x-\\udce9.parquet" in capsys.readouterr().out
    for words in (["logs", "quick", "--all"], ["ledger", "quick"], ["ledger", "quick", "--json"]):
        assert main([*words, *storage]) == 0
        assert "x-\\udce9.parquet" in "".join(capsys.readouterr())
