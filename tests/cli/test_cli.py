"""The command line: what it lists, its exit codes, and one sentence for every mistake.  Nothing here trains."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lnl.cli.flags import COMPLETE, ERROR, INCOMPLETE, USAGE
from lnl.cli.main import main, study_main
from lnl.cli.progress import Progress, SearchProgress, duration, interval
from lnl.cli.studies import find_study
from lnl.storage.leases import claim
from lnl.storage.places import canonical
from lnl.storage.store import Store
from lnl.study.status import reconcile
from lnl.system import machine
from lnl.trial.code_hash import code_hash
from tests.forked import run_script

REPOSITORY = Path(__file__).parents[2]
QUICK = """
from lnl import Noise, Study, Trial
study = Study(
    name="quick", question="Is the command line polite?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3),
    arms={"plain": {}, "strong": {"method.augmentation": "strong"}},
    factors={"labels": [50, 100]}, replicates=2,
)
"""
FLAWED = QUICK.replace(
    'factors={"labels": [50, 100]}', 'factors={"labels": [50, 100]}, panels={"p": {"title": "", "arms": ["bold"]}}'
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with studies/quick.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "quick.py").write_text(QUICK, encoding="utf-8")
    for name in ("LNL_STORAGE", "LNL_DATA", "LNL_GPUS_PER_TRIAL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def lnl(here, capsys):
    """`lnl(…)` -> exit code, standard output, standard error."""

    def call(*arguments):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse
            code = end.code
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def finish(store, planned, study="quick", **fields):
    trial = planned.trial
    row = {
        "trial": planned.id, "attempt": 1, "status": "ok", "accuracy_last": 0.75, "seconds": 65.0,
        "code_hash": code_hash(trial.method.name), "method": trial.method.name, "dataset": trial.dataset,
        "network": trial.network, "epochs": trial.total_epochs, "epochs_done": trial.total_epochs,
    }  # fmt: skip
    store.write_attempt(study, {**row, **fields}, [])


def strict(text):
    """JSON as other languages read it: without NaN."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# --------------------------------------------------------------------------------------------------- plan and status


def test_plan_lists_every_trial_and_starts_nothing(lnl, here):
    code, out, err = lnl("plan", "quick")
    assert (code, err) == (COMPLETE, "")
    plan = find_study("quick").plan()
    lines = out.splitlines()
    assert len(lines) == 8 + 1
    for line, planned in zip(lines, plan.trials, strict=False):
        setting = "labels=100" if planned.trial.labels == 100 else ""
        assert line.split() == [
            "missing",
            "?",
            planned.id,
            planned.arm,
            "replicate",
            str(planned.trial.replicate),
            *setting.split(),
        ]
    assert lines[-1] == f"quick, preset base, plan {plan.hash}: 8 trials: 8 missing."
    assert sorted(path.name for path in here.iterdir()) == ["studies"]


def test_plan_tells_what_is_done_and_what_the_rest_will_take(lnl, here):
    plan, store = find_study("quick").plan(), Store(here / "results")
    finish(store, plan.trials[0])
    finish(store, plan.trials[1], status="failed", failure_class="nan", accuracy_last=None)
    finish(store, plan.trials[2], status="failed", failure_class="oom", accuracy_last=None, seconds=None)
    finish(store, plan.trials[3], code_hash="0" * 12)
    claim(store, "quick", plan.trials[4].id)
    code, out, _ = lnl("plan", "quick")
    assert code == COMPLETE
    states = [line.split()[0] for line in out.splitlines()[:-1]]
    assert states == ["done", "done", "failed", "stale", "running", "missing", "missing", "missing"]
    total = out.splitlines()[-1]
    assert "8 trials: 2 done, 1 stale, 1 running, 1 failed, 3 missing; 1 diverged, counted as chance" in total
    assert "about 4:20 of work left" in total, "four trials of 65 seconds"
    assert "--rerun-stale" in total

    code, out, err = lnl("plan", "quick", "--json")
    found = strict(out)
    assert (code, err, found["study"], found["preset"], found["plan"]) == (COMPLETE, "", "quick", "base", plan.hash)
    assert found["counts"] == {"done": 2, "stale": 1, "running": 1, "failed": 1, "missing": 3}
    assert [entry["trial"] for entry in found["trials"]] == [planned.id for planned in plan.trials]
    assert found["trials"][0] == {
        "trial": plan.trials[0].id, "arm": "plain", "setting": {}, "replicate": 0, "state": "done",
        "changed": None, "lacks": [], "diverged": False, "accuracy": 0.75, "seconds": 65.0,
    }  # fmt: skip
    assert (found["trials"][1]["diverged"], found["trials"][1]["accuracy"]) == (True, 0.1), "chance, of ten classes"


def test_status_has_a_line_per_arm_and_an_exit_code(lnl, here):
    plan, store = find_study("quick").plan(), Store(here / "results")
    code, out, _ = lnl("status", "quick")
    assert code == INCOMPLETE and out.splitlines()[1].split() == ["plain", "0/4", "0", "0", "–"]

    accuracies = {("plain", 0): 0.59, ("plain", 1): 0.61, ("strong", 0): None}
    for planned in plan.trials:
        score = accuracies.get((planned.arm, planned.trial.replicate), 0.9) if planned.setting == "{}" else 0.1
        if (planned.arm, planned.trial.replicate) != ("strong", 1):
            outcome = {} if score is not None else {"status": "failed", "failure_class": "nan"}
            finish(store, planned, accuracy_last=score, **outcome)
    code, out, err = lnl("status", "quick")
    assert (code, err) == (INCOMPLETE, "")
    header, plain, strong, total = out.splitlines()
    assert header.split()[:4] == ["arm", "done", "running", "failed"]
    assert plain.split(maxsplit=4) == ["plain", "4/4", "0", "0", "60.0 ± 12.7 (n=2)"], "12.706 · 1 at the base only"
    assert re.split(r" {2,}", strong) == ["strong", "2/4, 1 diverged", "0", "0", "10.0 (n=1)"], "it counts as chance"
    assert total.startswith("8 trials: 6 done, 2 missing; 1 diverged, counted as chance")

    assert lnl("status", "quick", "--arms", "plain")[0] == COMPLETE
    code, out, _ = lnl("status", "quick", "--arms", "strong", "--json")
    assert code == INCOMPLETE and {entry["arm"] for entry in strict(out)["trials"]} == {"strong"}
    assert lnl("status", "quick", "--replicates", "1")[0] == COMPLETE
    assert lnl("status", "quick", "--set", "epochs=3")[0] == INCOMPLETE


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_damaged_part_is_not_passed_over_in_silence(lnl, here, caplog, command):
    plan, store = find_study("quick").plan(), Store(here / "results")
    finish(store, plan.trials[0])
    path = store.attempt_path("trials", "quick", plan.trials[0].id, 1)
    path.write_bytes(path.read_bytes()[:-9])
    _, out, err = lnl(command, "quick")
    assert "8 missing" in out and path.name in err + caplog.text


def test_changes_of_the_base_are_json_or_text(lnl):
    def trials(*arguments):
        return [entry["trial"] for entry in strict(lnl("plan", "quick", "--json", *arguments)[1])["trials"]]

    study = find_study("quick")
    changes = [
        "--set",
        "method.optimizer.learning_rate=0.5",
        "--set",
        "method.augmentation=none",
        "--set",
        "labels=null",
    ]
    expected = study.plan(
        changes={"method.optimizer.learning_rate": 0.5, "method.augmentation": "none", "labels": None}
    )
    assert trials(*changes) == [planned.id for planned in expected.trials]
    assert trials("--set", "dataset=npz:a=b.npz") == [
        planned.id for planned in study.plan(changes={"dataset": "npz:a=b.npz"}).trials
    ], "the first = separates"
    assert trials("--replicates", "3") == [planned.id for planned in study.plan(replicates=3).trials]


def test_a_study_is_found_by_name_here_or_beside_the_package_and_by_file(lnl, here):
    assert lnl("plan", "quick")[0] == lnl("plan", "studies/quick.py")[0] == COMPLETE
    assert "74 trials: 74 missing." in lnl("plan", "robmix_ablation", "--preset", "smoke")[1]
    (here / "quick.py").write_text(QUICK.replace("replicates=2", "replicates=1"), encoding="utf-8")
    assert lnl("plan", "quick.py")[1].splitlines()[-1].endswith("4 trials: 4 missing.")


def test_storage_is_a_flag_or_an_environment_variable(lnl, here, monkeypatch):
    plan = find_study("quick").plan(replicates=1)
    for planned in plan.trials:
        finish(Store(here / "elsewhere"), planned)
    assert lnl("status", "quick", "--replicates", "1")[0] == INCOMPLETE
    assert lnl("status", "quick", "--replicates", "1", "--storage", "elsewhere")[0] == COMPLETE
    monkeypatch.setenv("LNL_STORAGE", "elsewhere")
    assert lnl("status", "quick", "--replicates", "1")[0] == COMPLETE


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["plan", "quik"], ["'quik'", "quick"]),
        (["plan", "nowhere.py"], ["'nowhere.py'"]),
        (["plan", "empty.py"], ["empty.py", "study"]),
        (["plan", "broken.py"], ["broken.py", "SyntaxError"]),
        (["plan", "flawed.py"], ["panel 'p'", "'bold'"]),
        (["plan", "quick", "--preset", "smoke"], ["'smoke'"]),
        (["plan", "quick", "--arms", "plain,bold"], ["'bold'", "plain, strong"]),
        (["plan", "quick", "--set", "lables=3"], ["'lables'", "did you mean 'labels'?"]),
        (["plan", "quick", "--set", "method=mixmach"], ["'mixmach'", "did you mean 'mixmatch'?"]),
        (["plan", "quick", "--set", "method=5"], ["method"]),
        (["plan", "quick", "--set", "noise.rate=0.4"], ["0.4", "'none'"]),
        (["plan", "quick", "--set", "epochs=0"], ["epochs", "0"]),
        (["plan", "quick", "--set", "epochs"], ["KEY=VALUE", "'epochs'"]),
        (["plan", "quick", "--replicates", "0"], ["0", "at least 1"]),
        (["plan", "quick", "--replicates", "-1"], ["-1", "at least 1"]),
        (["status", "quick", "--preset", "smoke"], ["'smoke'"]),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(lnl, here, arguments, words):
    (here / "empty.py").write_text("", encoding="utf-8")
    (here / "broken.py").write_text("study = (", encoding="utf-8")
    (here / "flawed.py").write_text(FLAWED, encoding="utf-8")
    code, out, err = lnl(*arguments)
    assert (code, out) == (USAGE, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert err[-2] in ".?" and err[-3] not in ".?", err
    assert sorted(path.name for path in here.iterdir()) == ["broken.py", "empty.py", "flawed.py", "studies"]


@pytest.mark.parametrize("arguments", [[], ["plan"], ["plan", "quick", "--replicates", "many"]])
def test_a_command_that_lacks_something_is_bad_usage_too(lnl, arguments):
    code, out, err = lnl(*arguments)
    assert (code, out) == (USAGE, "") and "usage: lnl" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["plann", "quick"], "Unknown command 'plann': did you mean 'plan'?"),
        (
            ["frobnicate"],
            "Unknown command 'frobnicate': choose one of plan, run, search, status, report, ledger, profile, diff, "
            "logs, studies, copy, new, methods, check, embed, label, reference, doctor.",
        ),
        (["label", "eror", "images"], "Unknown job 'eror': did you mean 'errors'?"),
        (["new", "zzz", "mine"], "Unknown kind 'zzz': choose one of study, method."),
        (["plan", "quick", "--replicate-s", "1"], "Unknown flag '--replicate-s': did you mean '--replicates'?"),
        (["run", "quick", "--no-raport"], "Unknown flag '--no-raport': did you mean '--no-report'?"),
        (["report", "quick", "--selction=last"], "Unknown flag '--selction': did you mean '--selection'?"),
        (["doctor", "--zzz"], "Unknown flag '--zzz': see lnl doctor --help."),
        (["plan", "quik"], "Unknown study 'quik': did you mean 'quick'?"),
    ],
)
def test_a_typo_is_one_sentence_with_the_nearest_name(lnl, arguments, sentence):
    assert lnl(*arguments) == (USAGE, "", f"error: {sentence}\n")


def test_logs_as_json_are_what_the_text_shows(lnl, here):
    good, bad, *_ = find_study("quick").plan().trials
    store = Store(here / "results")
    finish(store, good)
    finish(store, bad, status="failed", failure_class="error", failure_message="KeyError: x", arm="plain", replicate=1)
    logs = here / "results" / "logs" / "study=quick"
    logs.mkdir(parents=True)
    for planned in (good, bad):
        (logs / f"{planned.id}-1.txt").write_text("zu Ende\n", encoding="utf-8")
    answer = strict(lnl("logs", "quick", "--json")[1])
    (failed,) = answer["attempts"]
    assert answer["study"] == "quick"
    assert (failed["trial"], failed["number"], failed["arm"], failed["failed"]) == (bad.id, 1, "plain", True)
    assert failed["failure_message"] == "KeyError: x" and failed["log"].endswith(f"{bad.id}-1.txt")
    assert {attempt["trial"] for attempt in strict(lnl("logs", "quick", "--all", "--json")[1])["attempts"]} == {
        good.id, bad.id,
    }  # fmt: skip
    (of_trial,) = strict(lnl("logs", "quick", good.id[:6], "--json")[1])["attempts"]
    assert of_trial["output"] == "zu Ende\n" and not of_trial["failed"]


def test_seeds_is_another_name_of_replicates(lnl):
    assert lnl("plan", "quick", "--seeds", "3") == lnl("plan", "quick", "--replicates", "3")
    short = ["plan", "quick", "--until-decided"]
    assert lnl(*short, "--max-seeds", "6") == lnl(*short, "--max-replicates", "6")
    assert "12 trials" in lnl("plan", "quick", "--seeds", "3")[1]


def test_a_report_of_what_was_never_run_says_so(lnl):
    code, out, err = lnl("report", "quick")
    assert code in (ERROR, USAGE) and out == "" and err.startswith("error: ") and err.count("\n") == 1, err


def test_help_names_every_command_and_flag(lnl):
    code, out, _ = lnl("--help")
    assert code == 0 and all(command in out for command in ("plan", "run", "status", "report", "doctor"))
    code, out, _ = lnl("run", "--help")
    flags = ["preset", "arms", "replicates", "set", "address", "storage", "data", "gpus-per-trial", "rerun-stale"]
    flags += ["json", "plan", "no-report"]
    assert code == 0 and all(f"--{flag} " in out for flag in flags)


def test_the_version_is_the_installed_one(lnl, monkeypatch):
    assert lnl("--version") == (0, f"lnl {metadata.version('lnl')}\n", "")

    def nothing_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing_installed)
    assert lnl("--version") == (0, "lnl (not installed, so without a version)\n", "")


# ------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_names_everything_that_is_wrong_and_nothing_else(lnl, here):
    plan, store = find_study("quick").plan(), Store(here / "results")
    for planned in plan.trials:
        finish(store, planned)
    lease, _ = claim(store, "quick", plan.trials[0].id)  # held by this living process
    code, out, _ = lnl("doctor", "--json")
    healthy = strict(out)
    assert code == (ERROR if healthy["problems"] else COMPLETE)
    assert not [line for line in healthy["problems"] if "results" in line or "lease" in line], healthy["problems"]
    assert healthy["facts"]["cpus"] == machine.cpus() and healthy["facts"]["ray"] and healthy["facts"]["free_gib"] > 0

    truncated = store.attempt_path("trials", "quick", plan.trials[1].id, 1)
    truncated.write_bytes(truncated.read_bytes()[:-9])
    curve = store.attempt_path("epochs", "quick", plan.trials[2].id, 1)
    curve.parent.mkdir(parents=True)
    curve.write_bytes(b"")
    half = truncated.with_name(".x-1.parquet.99-aa.tmp")
    half.write_bytes(b"PAR1")
    record = json.loads(lease.path.read_text(encoding="utf-8"))
    lease.path.write_text(canonical({**record, "born": 0.0}), encoding="utf-8")
    refused = store.checkpoint_path("quick", "abc").with_suffix(".refused-20260101T000000")
    refused.parent.mkdir(parents=True)
    refused.write_bytes(b"")

    code, out, err = lnl("doctor", "--json")
    assert (code, err) == (ERROR, "")
    new = [line for line in strict(out)["problems"] if line not in healthy["problems"]]
    assert len(new) == 5, new
    for words in (
        [f"left out trials/study=quick/{truncated.name}", "remove it"],
        [f"left out epochs/study=quick/{curve.name}", "and its row below trials"],  # else it stays done
        ["abandoned lease", plan.trials[0].id, str(os.getpid())],
        ["refused checkpoint", refused.name],
        [f"half-written trials/study=quick/{half.name}"],
    ):
        assert len([line for line in new if all(word in line for word in words)]) == 1, (words, new)

    code, out, _ = lnl("doctor")
    assert code == ERROR and out.splitlines()[0].startswith("python ") and set(new) < set(out.splitlines())
    assert truncated.exists() and half.exists() and lease.path.exists(), "doctor looks and does not touch"


# ----------------------------------------------------------------------------------------------------------- progress


def test_progress_without_a_terminal_has_one_line_per_finished_arm(here, capsys):
    plan = find_study("quick").plan()
    store = Store(here / "results")
    finish(store, plan.trials[0], accuracy_last=0.68)
    statuses = reconcile(plan, store)
    todo = [status.planned for status in statuses if status.state == "missing"]
    progress = Progress(plan, show="lnl logs quick {}".format)
    progress.start(todo, statuses)
    strong = next(planned for planned in todo if planned.arm == "strong")
    for planned in todo:
        progress.epoch(planned.id, {"epoch": 1})
        if planned == todo[-1]:
            progress.end(planned.id, {"outcome": "failed", "message": "KeyError: x\n  a trace"})
        else:
            failure = {"failure": "nan"} if planned == strong else {}
            progress.end(planned.id, {"outcome": "done", "accuracy": 0.7, **failure})
    progress.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "7 trials to run, 1 done before.",
        "plain: 4 of 4 done, last test accuracy at the base 69.0 ± 12.7 (n=2) %",
        f"failed  {todo[-1].arm}: KeyError: x (lnl logs quick {todo[-1].id})",
        "strong: 3 of 4 done, 1 diverged, last test accuracy at the base 70.0 ± 0.0 (n=2) %",
    ]


def test_what_is_run_again_is_not_done_before(here, capsys, monkeypatch):
    plan = find_study("quick").plan()
    store = Store(here / "results")
    for planned in plan.trials:
        finish(store, planned, accuracy_last=0.5, code_hash="of old code")
    statuses = reconcile(plan, store)
    assert {status.state for status in statuses} == {"stale"}
    progress = Progress(plan)
    progress.start(list(plan.trials), statuses)
    monkeypatch.setattr(Progress, "PULSE_S", 0.0)
    progress.end(plan.trials[0].id, {"outcome": "done", "accuracy": 0.7})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 trials to run, 0 done before." and lines[-1].startswith("1 of 8 trials, ")


def test_a_pulse_comes_when_nothing_else_does(here, capsys, monkeypatch):
    plan = find_study("quick").plan()
    progress = Progress(plan)
    progress.start(list(plan.trials), reconcile(plan, Store(here / "results")))
    progress.epoch(plan.trials[0].id, {"epoch": 1})
    assert len(capsys.readouterr().out.splitlines()) == 1
    monkeypatch.setattr(Progress, "PULSE_S", 0.0)
    progress.epoch(plan.trials[0].id, {"epoch": 2})
    assert capsys.readouterr().out.startswith("0 of 8 trials, 0:00 so far")


def test_quiet_progress_says_nothing(here, capsys):
    plan = find_study("quick").plan()
    progress = Progress(plan, quiet=True)
    progress.start(list(plan.trials), reconcile(plan, Store(here / "results")))
    progress.end(plan.trials[0].id, {"outcome": "failed", "message": "x"})
    progress.finish()
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0:00"),
        (5.4, "0:05"),
        (59.6, "1:00"),
        (65, "1:05"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (7265, "2:01:05"),
        (360000, "100:00:00"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "scores, text",
    [
        ([], "–"),
        ([0.5], "50.0 (n=1)"),
        ([0.1, 0.3], "20.0 (n=2)"),  # half of its interval would be 127 points
        ([0.90, 0.92, 0.94], "92.0 ± 5.0 (n=3)"),  # t(0.975, 2) = 4.3027, standard error 0.02 / √3
        ([0.8, 0.8, 0.8, 0.8], "80.0 ± 0.0 (n=4)"),
    ],
)
def test_intervals(scores, text):
    assert interval(scores) == text


# ------------------------------------------------------------------------------------------------- as a user starts it


def python(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, encoding="utf-8", cwd=cwd, env=environment, timeout=60
    )


@pytest.mark.slow
def test_a_study_script_plans_without_ray_and_without_a_trace(here):
    script = str(REPOSITORY / "studies" / "robmix_ablation.py")
    done = python("-X", "importtime", script, "--preset", "smoke", "--plan", "--json", cwd=here)
    assert done.returncode == COMPLETE
    assert strict(done.stdout)["counts"] == {"done": 0, "stale": 0, "running": 0, "failed": 0, "missing": 74}
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"lnl", "torch", "pyarrow"} <= imported and not {"ray", "optuna", "matplotlib", "sklearn"} & imported
    assert sorted(path.name for path in here.iterdir()) == ["studies"]


@pytest.mark.slow
def test_the_command_ends_with_its_exit_code_and_without_a_traceback(here):
    program, environment = str(Path(sys.executable).parent / "lnl"), {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    wrong = run_script([program, "plan", "quick", "--set", "lables=3"], environment, here)
    assert (wrong.returncode, wrong.stdout) == (USAGE, "")
    assert wrong.stderr == "error: Unknown key 'lables': did you mean 'labels'?\n"
    incomplete = run_script([program, "status", "quick"], environment, here)
    assert (incomplete.returncode, incomplete.stderr) == (
        INCOMPLETE,
        "",
    ) and "8 trials: 8 missing." in incomplete.stdout


def test_a_study_script_takes_the_same_flags(here, capsys):
    study = find_study("quick")
    assert study_main(study, ["--plan", "--arms", "strong", "--replicates", "1"]) == COMPLETE
    assert capsys.readouterr().out.splitlines()[-1].endswith("2 trials: 2 missing.")
    assert study_main(study, ["--plan", "--preset", "smoke"]) == USAGE
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as end:
        study_main(study, ["--plann"])
    assert end.value.code == USAGE
    assert capsys.readouterr().err == "error: Unknown flag '--plann': did you mean '--plan'?\n"


def test_lnl_run_takes_all_that_a_study_script_takes(here, lnl, capsys):
    flags = ["--plan", "--no-report", "--arms", "strong"]
    assert study_main(find_study("quick"), flags) == COMPLETE
    by_script = capsys.readouterr().out
    assert lnl("run", "quick", *flags) == lnl("plan", "quick", "--arms", "strong") == (COMPLETE, by_script, "")


# ---------------------------------------------------------------------------------------------------------- searches

SEARCHED = """
from lnl import Noise, Search, Study, Trial, Uniform, Validation
study = Study(
    name="quick", question="Does it say how a search stands?",
    base=Trial(method="robmix", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3,
        noise=Noise("symmetric", 0.4), validation=Validation(images=100, labels="noisy")),
    arms={"full": {}, "mixup": {"method": "mixup"}}, replicates=1,
    search=Search(suggestions=3, parameters=("method.temperature", "method.alpha"), samplers=("random",)),
)
"""


@pytest.fixture
def searched(here):
    (here / "studies" / "quick.py").write_text(SEARCHED, encoding="utf-8")
    return here


def test_plan_and_status_tell_of_searches(searched, lnl):
    code, out, _ = lnl("plan", "quick")
    assert code == COMPLETE and out.splitlines()[-3:] == [
        "search  full_random: 0 of 3 suggestions, over method.temperature, method.alpha",
        "search  mixup_random: 0 of 3 suggestions, over method.alpha",
        "Work left in the searches: not known before a trial of their arms has been timed.",
    ]
    store = Store(searched / "results")
    finish(store, find_study("quick").plan().trials[0], accuracy_last=0.5, seconds=60.0, epochs_done=2)
    _, out, _ = lnl("plan", "quick", "--trials", "10")
    assert out.splitlines()[-1] == (
        "Work left in the searches: about 10:00, one trial at a time, and that of arms without a timed trial."
    )
    code, out, _ = lnl("status", "quick", "--method", "mixup", "--json")
    cells = strict(out)["search"]["cells"]
    assert code == INCOMPLETE and [cell["searched_arm"] for cell in cells] == ["full_random", "mixup_random"]
    assert {trial["arm"] for trial in strict(out)["trials"]} == {"mixup"}


def test_wrong_wishes_for_a_search_are_one_sentence(searched, lnl):
    for flags, sentence in {
        ("--method", "glc"): "The plan has no arm of method 'glc': there are mixup, robmix.",
        ("--parameters", "method.q"): "The search has no parameter 'method.q': there are method.lambda_mixmatch, ",
        (
            "--sampler",
            "anneal",
        ): "Search: samplers.0: Input should be 'tpe', 'random', 'qmc', 'cmaes', 'gp' or 'nsga2', not 'anneal'.",
        ("--pruner", "axe"): "Search: pruner: Input should be 'none', 'asha', ",
        ("--trials", "0"): "Search: suggestions: Input should be greater than or equal to 1, not 0.",
    }.items():
        code, out, err = lnl("plan", "quick", *flags)
        assert (code, out) == (USAGE, "") and err.startswith(f"error: {sentence}") and err.count("\n") == 1


def test_a_study_without_a_search_names_the_command_that_makes_one(here, lnl):
    code, _, err = lnl("plan", "quick", "--trials", "5")
    assert (code, err) == (USAGE, "error: Study quick declares no search: use `lnl search quick …`.\n")
    code, _, err = lnl("search", "quick", "--trials", "5")
    assert code == USAGE and err == (
        "error: A search chooses by validation images, and arm 'plain' has none: give the base some, such as "
        "validation.images=200.\n"
    )


def test_search_progress_says_what_was_found(searched, capsys, monkeypatch):
    from lnl.search.searches import Searches
    from tests.search.test_search import train

    plan, store = find_study("quick").plan(), Store(searched / "results")
    searches = Searches(plan, store, arms=["full"])
    progress = SearchProgress(searches)
    progress.start()
    scores = iter([0.5, 0.75, 0.625])
    while planned := searches.next(1):
        progress.epoch(planned.id, {"epoch": 1})
        train(store, plan, planned, next(scores))
        searches.ended(planned.id, {"outcome": "done"})
        progress.end(planned.id, {"outcome": "done"})
    progress.finish()
    assert capsys.readouterr().out.splitlines() == [
        "3 suggestions in 1 search, 0 evaluated before.",
        "full_random: 3 of 3 suggestions, validation accuracy 75.0 % (suggestion 1; own values 50.0)",
    ]
    monkeypatch.setattr(SearchProgress, "PULSE_S", 0.0)
    monkeypatch.setattr(SearchProgress, "LOOK_S", 0.0)
    progress.end("x", {"outcome": "failed", "message": "Out of memory.\n…"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "failed  suggestion: Out of memory. (x)" and lines[1].startswith("3 of 3 suggestions, 0:0")
