"""Locks between processes: one holds it, the next is told that it waits, and a dead process holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lnl.storage.files import lock_file

HOLDER = """
import sys, time
from pathlib import Path
from lnl.storage.files import lock_file
lock = lock_file(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_who_waits_is_told_and_gets_the_lock_when_its_holder_is_killed(tmp_path: Path) -> None:
    path, calls = tmp_path / ".lock", []
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, encoding="utf-8") as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"

        def waiting() -> None:
            calls.append("waiting")
            holder.kill()

        lock_file(path, waiting).close()
    lock_file(path, waiting).close()
    assert calls == ["waiting"], "a free lock is not waited for"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "."):
        with pytest.raises(OSError, match=name):
            lock_file(tmp_path / name)
