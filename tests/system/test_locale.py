"""Commands under locales that are not UTF-8: they read the same, and a character that is missing ends nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lnl.cli.main import main
from lnl.cli.studies import find_study
from lnl.storage.places import now
from lnl.storage.store import Store
from lnl.trial.provenance import Current

LOCALES = {"ISO-8859-1": "en_US", "GBK": "zh_CN"}
STUDY = '''"""λ, ½ and 猫 in every name."""
from lnl import Contrast, Study, Trial

study = Study(
    name="quick",
    question="Does λ ≥ ½ help a 猫 — or a café?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1),
    arms={"λ = ½ 猫": {}, "naïve café": {"labels": 60}},
    replicates=2,
    contrasts=[Contrast("λ = ½ 猫", against="naïve café", smallest_effect=0.01)],
)
'''
COMMANDS = """
import json, locale, sys
from lnl.cli.main import main
from lnl.cli.studies import find_study
from lnl.trial.provenance import Current

assert locale.getencoding().lower().replace("-", "").endswith(sys.argv[1]), locale.getencoding()
storage = ["--storage", "store"]
codes = [main([*words, *storage]) for words in (
    ["plan", "quick.py"], ["status", "quick.py"], ["status", "quick.py", "--json"], ["logs", "quick"],
    ["logs", "quick", "--all"], ["logs", "quick", "0123"], ["ledger", "quick", "--csv", "ledger.csv"], ["doctor"],
)]
codes.append(main(["methods", "robmix"]))
codes.append(main(["plan", "quick.py", "--arms", "κ"]))
if sys.argv[2:]:
    codes.append(main(["report", "quick", *storage]))
hashes = [Current().sources(planned.trial).code_hash for planned in find_study("quick.py").plan().trials]
with open("found.json", "w", encoding="utf-8") as file:
    json.dump([codes, hashes], file)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trial is done, one failed in words that no small alphabet has, and its log has them, too."""
    folder = tmp_path_factory.mktemp("locale")
    (folder / "quick.py").write_text(STUDY, encoding="utf-8")
    (folder / "commands.py").write_text(COMMANDS, encoding="utf-8")
    plan, store = find_study(str(folder / "quick.py")).plan(), Store(folder / "store")
    from lnl.study.plan import plan_row

    store.write_plan(plan_row(plan, None))
    for planned, outcome in zip(
        plan.trials,
        (
            {"status": "ok", **dict.fromkeys(("accuracy_last", "accuracy_last10", "accuracy_best_test"), 0.5)},
            {"status": "failed", "failure_class": "data_error", "failure_message": "猫 ≠ λ — naïve"},
        ),
        strict=False,
    ):
        about = {
            "trial": planned.id,
            "attempt": 1,
            "preset": "base",
            "arm": planned.arm,
            "setting": "{}",
            "replicate": 0,
        }
        times = dict.fromkeys(("started_at", "ended_at"), now())
        config = {
            "code_hash": Current().sources(planned.trial).code_hash,
            "method": "supervised",
            "dataset": "digits",
            "device": "µ CPU",
        }
        store.write_attempt(
            "quick", {**about, **config, **times, "seconds": 1.0, "cpus": 1.0, "gpus": 0.0, **outcome}, []
        )
    store.write_log("quick", "0123456789ab", 1, "猫 ½ é\n")
    return folder


@pytest.mark.parametrize("change", ["dataset=folder:caf\udce9", "weights=/caf\udce9.pt"])
def test_a_name_that_is_not_utf_8_is_refused_in_a_sentence(
    change: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(store / "quick.py"), "--set", change]) == 2
    said = capsys.readouterr().err
    assert "caf\\udce9" in said and "is not valid UTF-8 and cannot be stored: rename" in said and "codec" not in said


def test_what_git_says_in_another_alphabet_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lnl.execution.submit import git_state

    git = tmp_path / "git"
    git.write_bytes(b"#!/bin/sh\necho 'Kein Git-Repository (oder irgendein \xfcbergeordnetes)' >&2\nexit 128\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LNL_GIT_COMMIT", raising=False)
    assert git_state.__wrapped__() == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", LOCALES)
def test_commands_work_and_results_are_not_stale(encoding: str, store: Path, tmp_path: Path) -> None:
    """Where the system lacks the locale's sources, in ASCII, which has still fewer characters."""
    folder = tmp_path / "here"
    shutil.copytree(store, folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    name = f"{LOCALES[encoding]}.{encoding}"
    if shutil.which("localedef"):
        make = ["localedef", "-i", LOCALES[encoding], "-f", encoding, str(tmp_path / name)]
        subprocess.run(make, capture_output=True, check=False)
    there = (tmp_path / name).is_dir()
    environment |= {"LC_ALL": name, "LOCPATH": str(tmp_path)} if there else {"LC_ALL": "C"}
    wanted = {"ISO-8859-1": "iso88591", "GBK": "gbk"}[encoding] if there else "ansi_x3.41968"
    words = [sys.executable, "-W", "ignore", "commands.py", wanted, *(["report"] if encoding == "GBK" else [])]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False, timeout=300)
    said = done.stderr.decode(errors="backslashreplace")
    assert done.returncode == 0 and "Traceback" not in said and "UnicodeEncodeError" not in said, said
    codes, hashes = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    doctor = 1 if codes[7] else 0  # what the machine's own ports and packages are
    assert codes[:10] == [0, 3, 3, 0, 0, 0, 0, doctor, 0, 2] and codes[10:] == [0] * (encoding == "GBK"), (codes, said)
    trials = find_study(str(folder / "quick.py")).plan().trials
    assert hashes == [Current().sources(planned.trial).code_hash for planned in trials]
    assert b"4 trials: 1 done, 1 failed, 2 missing" in done.stdout, "not stale"
    shown = {"ISO-8859-1": "\\u732b ½ é".encode("latin-1"), "GBK": "猫 \\xbd é".encode("gbk")}
    assert (shown[encoding] if there else rb"\u732b \xbd \xe9") in done.stdout
    assert (folder / "ledger.csv").read_text(encoding="utf-8").count("猫") >= 1
