"""Who holds what does not depend on clocks; what killed processes leave in temporary folders is found and cleared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.results import newest_plan
from lnl.cli import doctor
from lnl.storage import leases as storage_leases
from lnl.storage import places, schema, tables
from lnl.storage.leases import Lease, claim, is_held, leases
from lnl.storage.places import canonical
from lnl.storage.store import Store, by_submission
from lnl.system import processes

TOMORROW, YESTERDAY = 86400.0, -86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


# ------------------------------------------------------------------------------------------- machines and processes


def test_a_process_lives_until_it_ends_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        of_child = {**processes.identity(), "pid": child.pid, "born": processes._born(child.pid)}
        assert processes.is_identity(of_child) and processes.lives(of_child) is True
        monkeypatch.setattr(psutil, "boot_time", lambda: 1.0)  # as psutil tells it after the clock was set
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 1.0)
        processes._boot.cache_clear()
        assert processes.lives(of_child) is True
        assert processes.lives({**of_child, "born": of_child["born"] - 1}) is False, "the number is another process's"
        child.kill()
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert processes.lives(of_child) is False, "nobody has asked for its end yet"
    assert processes.lives(of_child) is False
    assert processes.lives({**of_child, "host": "elsewhere/0/"}) is None


def test_a_boot_is_told_by_its_id_and_a_container_by_its_processes() -> None:
    name, boot, space = processes.this_host().split("/")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert space == os.readlink("/proc/self/ns/pid") and name


# ------------------------------------------------------------------------------------------------- leases and clocks


def of_another_host(store: Store, dated: float, **fields: Any) -> Lease:
    """A lease whose last heartbeat has a date so many seconds from now."""
    lease, _ = claim(store, "noise", "a")
    assert lease is not None
    record = {**json.loads(lease.path.read_text(encoding="utf-8")), "host": "elsewhere/0/", **fields}
    lease.path.write_text(canonical(record), encoding="utf-8")
    beat(lease, dated)
    return lease


def beat(lease: Lease, dated: float) -> None:
    os.utime(lease.path, (time.time() + dated, time.time() + dated))


def test_a_dead_hosts_lease_dated_tomorrow_lapses_after_its_interval(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = of_another_host(store, TOMORROW)
    assert not is_held(store, "noise", "a") and leases(store)["noise", "a"]["alive"] is False
    assert [line for line in doctor.examine(store)[1] if "lease" in line and "set the clocks right" in line]
    monkeypatch.setattr(storage_leases, "EXPIRY_S", 0.3)
    taken, holder = claim(store, "noise", "a")
    assert taken is not None and holder is not None and holder["token"] == lease.token
    assert taken.previous_beat is not None and taken.previous_beat <= places.now(), "nobody was seen alive tomorrow"


@pytest.mark.parametrize("dated", [TOMORROW, YESTERDAY])
def test_a_living_holder_whose_clock_is_wrong_is_not_robbed(store: Store, dated: float) -> None:
    lease = of_another_host(store, dated)
    assert not is_held(store, "noise", "a"), "who looks once can only go by the date"
    beat(lease, dated + 5)
    assert is_held(store, "noise", "a") and claim(store, "noise", "a")[0] is None
    beat(lease, dated + 10)
    assert leases(store)["noise", "a"]["alive"] is True


def test_a_holder_that_beats_while_a_claim_watches_keeps_its_lease(store: Store) -> None:
    lease = of_another_host(store, TOMORROW)
    script = f"import os, time; time.sleep(0.5); os.utime({str(lease.path)!r}, (time.time() + 90000,) * 2)"
    with subprocess.Popen([sys.executable, "-c", script]):
        taken, holder = claim(store, "noise", "a")
    assert taken is None and holder is not None and holder["token"] == lease.token


def test_a_silent_holder_lapses_by_the_readers_own_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_host(store, 50)  # within the tolerance of clocks
    assert is_held(store, "noise", "a")
    monkeypatch.setattr(storage_leases, "EXPIRY_S", 0.2)
    time.sleep(0.3)
    assert not is_held(store, "noise", "a") and claim(store, "noise", "a")[0] is not None


def test_records_of_older_versions_hold_as_long_as_they_beat(store: Store) -> None:
    """They told boots by `boot_time` and processes by their time of birth, so this machine seems another one."""
    old = {"host": f"{processes.this_host().split('/')[0]}/1700000000/", "born": psutil.Process().create_time()}
    lease = of_another_host(store, -5, **old)
    assert is_held(store, "noise", "a") and claim(store, "noise", "a")[0] is None
    with_old_date = of_another_host(Store(store.root / "other"), -storage_leases.EXPIRY_S - 1, **old)
    assert not is_held(Store(store.root / "other"), "noise", "a") and lease.token != with_old_date.token


@pytest.mark.parametrize("wrong", [{"pid": "../self"}, {"born": None}, {"host": 3}, {"token": 5}])
def test_a_record_of_other_kinds_holds_nothing(store: Store, wrong: dict[str, Any]) -> None:
    of_another_host(store, 0, **wrong)
    assert leases(store) == {} and claim(store, "noise", "a")[0] is not None


def test_a_pipe_among_leases_is_no_lease_and_waited_for_by_nobody(store: Store) -> None:
    path = store.lease_path("noise", "a")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert leases(store) == {} and not is_held(store, "noise", "a")
    assert claim(store, "noise", "a")[0] is not None


# ---------------------------------------------------------------------------------------------------- plans and clocks


def plan_of(name: str, hours: float, **fields: Any) -> dict[str, Any]:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    plan = {"trials": [], "night": None, "name": name}
    about = {"study": "noise", "preset": "base", "plan_hash": name, "submitted_at": at}
    return {**about, "plan": json.dumps(plan), **fields}


def test_the_newest_plan_is_the_one_that_came_last_whatever_the_clocks_said(store: Store) -> None:
    older = store.root / "studies" / "noise-base-old.parquet"
    tables.write_rows(older, schema.STUDIES, [plan_of("old", 99)])  # of an older version: without a number
    for name, hours in (("ahead", 24), ("second", 1), ("third", 0), ("second", 2)):
        store.write_plan(plan_of(name, hours))
    store.write_plan(plan_of("other", 0, study="noise_rates"))
    plans = store.plans("noise")
    assert plans["plan_hash"].tolist() == ["old", "ahead", "third", "second"]
    assert plans["sequence"].astype(object).where(plans["sequence"].notna(), None).tolist() == [None, 1, 3, 4]
    assert newest_plan(plans, [], store.root, "noise", None, None)["plan_hash"] == "second"
    assert store.plans("noise_rates")["sequence"].tolist() == [1]
    assert by_submission(plans.sample(frac=1, random_state=1))["plan_hash"].tolist() == plans["plan_hash"].tolist()


def test_plans_without_numbers_are_ordered_by_time(store: Store) -> None:
    for name, hours in (("b", 2), ("a", 1)):
        path = store.root / "studies" / f"noise-base-{name}.parquet"
        tables.write_rows(path, schema.STUDIES, [plan_of(name, hours)])
    assert store.plans("noise")["plan_hash"].tolist() == ["a", "b"]


SUBMITS = """
import json, sys
from pathlib import Path
from lnl.storage.store import Store
from tests.system.test_processes import plan_of
for number in range(8):
    Store(Path(sys.argv[1])).write_plan(plan_of(f"{sys.argv[2]}{number}", 0))
"""


@pytest.mark.slow
def test_plans_that_are_submitted_at_once_get_numbers_of_their_own(store: Store) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SUBMITS, str(store.root)]
    both = [subprocess.Popen([*command, name], env=environment) for name in ("x", "y")]
    assert [one.wait(timeout=60) for one in both] == [0, 0]
    assert sorted(store.plans("noise")["sequence"]) == list(range(1, 17))


# ------------------------------------------------------------------------------------------------------ scratch folders

KILLED = """
import os, sys
from pathlib import Path
from lnl.system import processes
with processes.scratch("tune") as folder, processes.scratch("ray") as own:
    (folder / "trial").mkdir()
    (own / "r" / "session_1").mkdir(parents=True)
    print(folder, own, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def kill_one() -> list[Path]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, encoding="utf-8", env=environment, check=False
    )
    assert done.returncode == -9, done.stderr
    return [Path(name) for name in done.stdout.split()]


def test_what_a_killed_driver_leaves_is_named_and_goes_and_nothing_else(temporary: Path, store: Store) -> None:
    tune, ray = kill_one()
    assert tune.exists() and ray.exists()

    foreign = temporary / "lnl-notes"
    foreign.mkdir()
    of_other_machine = temporary / "lnl-tune-far"
    of_other_machine.mkdir()
    far = {**processes.identity(), "host": "elsewhere/0/", "pid": 2**22 + 1}
    (of_other_machine / processes.OWNER).write_text(json.dumps(far), encoding="utf-8")
    damaged = temporary / "lnl-tune-damaged"
    damaged.mkdir()
    (damaged / processes.OWNER).write_text('{"host": 3}', encoding="utf-8")
    with processes.scratch("tune") as living:
        assert sorted(processes.left_over()) == sorted([tune, ray])
        assert sorted(doctor.left_over()) == sorted(
            f"left-over folder {path}: of a process that was killed; the next run removes it." for path in (tune, ray)
        )
        processes.clear()
        assert living.is_dir() and not tune.exists() and not ray.exists()
    assert not living.exists()
    assert foreign.is_dir() and of_other_machine.is_dir() and damaged.is_dir() and processes.left_over() == []


def test_a_folder_from_before_a_restart_is_left_over(temporary: Path) -> None:
    name, _, space = processes.this_host().split("/")
    folder = temporary / "lnl-tune-before"
    folder.mkdir()
    before = {**processes.identity(), "host": f"{name}/another-boot/{space}"}
    (folder / processes.OWNER).write_text(json.dumps(before), encoding="utf-8")
    assert processes.left_over() == [folder]


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
def test_a_folder_of_another_user_stays(temporary: Path) -> None:
    tune, ray = kill_one()
    os.chown(tune, 12345, 12345)
    processes.clear()
    assert tune.is_dir() and not ray.exists()
