"""What a run may use of its machine, with real folders, files of other users, control groups, and one real Ray."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lnl.cli.main import main
from lnl.system import machine, processes

ROOT = Path(__file__).parents[2]
STRANGER = 54321  # a user without an entry in the password database
is_root = os.getuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="only root can be other users, mount, and give files away")


def strangers(command: list[str]) -> list[str]:
    """The command as a user without a name, who may read everything, as Python itself may lie in a closed folder."""
    if not is_root or shutil.which("setpriv") is None:
        pytest.skip("only root can become a user without a name, by setpriv of util-linux")
    capability = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    return ["setpriv", "--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups", *capability, *command]


def homeless(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("RAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


# ------------------------------------------------------------------------------------------------------------ no home


@pytest.mark.slow
def test_without_a_home_directory_commands_work_or_say_what_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
from lnl import data
from lnl.cli.main import main
assert main(["plan", "robmix_ablation"]) == 0 and main(["status", "robmix_ablation"]) == 3
assert main(["doctor"]) == 0
for act in (lambda: data.load("digits"), lambda: data.load("npz:~/x.npz")):
    try:
        act()
    except data.DataError as error:
        print(error, file=sys.stderr)
main(["status", "robmix_ablation", "--storage", "~/results"])
""",
        encoding="utf-8",
    )
    tmp_path.chmod(0o755)
    done = subprocess.run(
        strangers([sys.executable, str(script)]),
        env=homeless(LNL_STORAGE=str(tmp_path / "results")),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert "Traceback" not in done.stderr and "No problem found." in done.stdout, done.stderr
    no_root, no_file, *_, no_storage = done.stderr.strip().splitlines()
    assert no_root == (
        "There is no home directory for '~/.cache/lnl': set HOME, or name a folder for data sets with --data or "
        "LNL_DATA."
    )
    assert no_file.startswith("There is no home directory for ")
    assert no_storage.endswith("There is no home directory for '~/results': set HOME, or give a path without '~'.")


# --------------------------------------------------------------------------------------------------------------- CPUs


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cpus_are_those_of_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= machine.cpus() <= len(allowed)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {}, float("inf")),
        ("0::/", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/user.slice/run", {"user.slice/cpu.max": "200000 100000", "user.slice/run/cpu.max": "max 100000"}, 2.0),
        ("0::/user.slice/run", {"user.slice/cpu.max": "200000 100000", "user.slice/run/cpu.max": "50000 100000"}, 0.5),
        ("3:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ("2:cpuset:/\n3:cpu:/", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        (
            "3:cpu,cpuacct:/docker/abc",  # the host's path, as a container sees it, whose own group is what is mounted
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("0::/../other", {"cpu.max": "100000 100000"}, 1.0),
        ("nonsense", {"cpu.max": "100000 100000"}, float("inf")),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], quota: float) -> None:
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    (tmp_path / "groups").write_text(groups + "\n", encoding="utf-8")
    assert machine._quota(tmp_path / "groups", tmp_path / "mount") == quota


@needs_root
def test_a_real_control_group_holds_its_processes_to_its_quota() -> None:
    group = Path("/sys/fs/cgroup/cpu") / f"lnl-test-{os.getpid()}"  # of version 1
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU cannot be shared")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("120000", encoding="ascii")
    except OSError as error:
        pytest.skip(f"control groups cannot be made here ({error})")
    try:
        enter = f'open("{group}/cgroup.procs", "w").write("0"); from lnl.system import machine; print(machine.cpus())'
        done = subprocess.run([sys.executable, "-c", enter], env=homeless(), capture_output=True, check=True)
        assert done.stdout.split() == [b"1"]
    finally:
        group.rmdir()


# ------------------------------------------------------------------------------------------------- a folder for a Ray


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder, below which tests make others; no wish of the environment."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    folder = Path("/tmp") / f"l{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_ray_cannot_use_is_passed_over(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(places))
    with machine.ray_folder() as folder:
        assert (
            folder.parent == places
            and stat.S_IMODE(folder.stat().st_mode) == 0o700
            and os.listdir(folder) == [processes.OWNER]
        )
        with socket.socket(socket.AF_UNIX) as longest:
            (folder / machine.RAY_SOCKET).parent.mkdir(parents=True)
            longest.bind(str(folder / machine.RAY_SOCKET))
    assert not folder.exists()
    long, file = places / ("x" * 100), places / "file"
    long.mkdir()
    file.touch()
    for unfit in (long, file, places / "missing"):
        monkeypatch.setenv("RAY_TMPDIR", str(unfit))
        monkeypatch.setenv("TMPDIR", str(unfit))
        with machine.ray_folder() as folder:
            assert folder.parent == Path("/tmp")
    assert not list(long.iterdir()), "what was tried out is removed"


def test_where_no_folder_will_do_each_is_named_with_its_reason(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long, file, link = places / ("x" * 100), places / "file", places / "link"
    long.mkdir()
    file.touch()
    link.symlink_to(link)
    monkeypatch.setattr(machine, "temporary_folders", lambda: [long, file, link, places / "missing"])
    with pytest.raises(OSError) as refused, machine.ray_folder():
        pass
    sentence = str(refused.value)
    assert f"{long} (a name of {len(str(long))} bytes, and 24 is the most that leaves room for a socket's)" in sentence
    assert f"{file} (Not a directory)" in sentence and f"{link} (Too many levels of symbolic links)" in sentence
    assert f"{places}/missing (No such file or directory)" in sentence
    assert sentence.endswith("has 16 MiB free and a name of at most 24 bytes.") and len(sentence.splitlines()) == 1


@needs_root
def test_full_and_closed_folders_are_passed_over(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "temporary_folders", lambda: [places])
    reasons = {"size=1m": "No space left on device", "nr_inodes=3": "No space left on device", "ro": "Read-only"}
    for options, reason in reasons.items():
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(places)], capture_output=True
        ).returncode:
            pytest.skip("mounting a small tmpfs is not permitted here")
        try:
            with pytest.raises(OSError, match=reason), machine.ray_folder():
                pass
        finally:
            subprocess.run(["umount", str(places)], check=True)
    with machine.ray_folder():
        pass


# ------------------------------------------------------------------------------------------------- whose cluster it is


@pytest.fixture
def cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(machine, "CLUSTER_FILE", path)
    return path


def plant(path: Path, how: str) -> None:
    """What somebody else might leave there."""
    if how == "a FIFO":
        os.mkfifo(path)
    elif how == "a folder":
        path.mkdir()
    elif how == "a link":
        (path.parent / "elsewhere").write_text("10.6.6.6:6379", encoding="utf-8")
        path.symlink_to(path.parent / "elsewhere")
    else:
        path.write_text("10.6.6.6:6379", encoding="utf-8")
        if how == "open to everybody":
            path.chmod(0o666)
        else:
            os.chown(path, STRANGER, STRANGER)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("a FIFO", "it is not a regular file"),
        ("a folder", "it is not a regular file"),
        ("a link", "it is a symbolic link"),
        ("open to everybody", "everybody may write it"),
        pytest.param("another user's", f"it belongs to another user ({STRANGER})", marks=needs_root),
    ],
)
def test_a_planted_cluster_is_not_followed(cluster_file: Path, how: str, reason: str) -> None:
    from lnl.cli import doctor
    from lnl.execution import ray_connection, ray_environment

    plant(cluster_file, how)
    address, refused = machine.cluster()
    assert (
        address is None and refused is not None and f"{cluster_file} is not followed" in refused and reason in refused
    )
    assert ray_environment.address() == "local"
    assert list(doctor.of_cluster(1)) == [refused]
    with pytest.raises(ConnectionError, match="is not followed"), ray_connection.connected("auto"):
        pass


def test_the_cluster_of_this_user_is_followed(cluster_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lnl.execution import ray_connection, ray_environment

    assert machine.cluster() == (None, None) and ray_environment.address() == "local"
    with pytest.raises(ConnectionError, match="belongs to no Ray cluster"), ray_connection.connected("auto"):
        pass
    cluster_file.write_text("127.0.0.1:1\n", encoding="utf-8")
    assert machine.cluster() == ("127.0.0.1:1", None) and ray_environment.address() == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "")  # to be undone
    with pytest.raises(ConnectionError, match="No Ray cluster answers at 'auto'"), ray_connection.connected("auto"):
        pass
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:1", "Ray by itself would look for others"


# ----------------------------------------------------------------------------------------------------- a Ray of our own

OWN_RAY = """
import ipaddress, json, os, time
import psutil
from lnl.execution import ray_environment
ray_environment.prepare("local")
import ray
from lnl.execution.ray_connection import connected

def outside():
    '''Where processes of this Ray can be reached from other machines.'''
    driver = psutil.Process()
    for process in [driver, *driver.children(recursive=True)]:
        for door in process.net_connections("inet"):
            address = ipaddress.ip_address(door.laddr.ip)
            if door.status == psutil.CONN_LISTEN and not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
                yield f"{process.name()} {door.laddr.ip}"

def in_worker():
    import ray.tune
    return os.nice(0), psutil.Process().num_threads() > 0

with connected("local"):
    answer = {"cpus": ray.cluster_resources()["CPU"], "worker": ray.get(ray.remote(in_worker).remote())}
    listening, doors = set(), 0
    for _ in range(5):
        listening |= set(outside())
        time.sleep(0.5)
    session = ray._private.worker._global_node.get_session_dir_path()
    modes = [oct(os.stat(folder).st_mode & 0o777) for folder in (session, session + "/../..")]
    print(json.dumps({**answer, "outside": sorted(listening), "session": session, "modes": modes}))
"""


@pytest.mark.long
def test_a_ray_of_our_own(places: Path, tmp_path: Path) -> None:
    """One start, where everything is against it: no home directory, a long TMPDIR, one CPU of the machine's."""
    if is_root:
        places.chmod(0o755)
        command = strangers([sys.executable, "-c", OWN_RAY])
    else:
        command = [sys.executable, "-c", OWN_RAY]
    long = places / ("x" * 100)
    long.mkdir()
    long.chmod(0o777)
    cpu = min(os.sched_getaffinity(0))
    done = subprocess.run(
        ["taskset", "-c", str(cpu), *command],
        env=homeless(TMPDIR=str(long)),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["cpus"] == 1
    assert told["worker"][0] == 0, "workers have normal priority"
    assert told["outside"] == [], "nothing of it can be reached from other machines"
    assert told["session"].startswith(f"/tmp/{processes.PREFIX}{machine.RAY}-") and told["modes"][1] == "0o700"
    assert not Path(told["session"]).parents[1].exists(), "its folder goes with it"


@needs_root
@pytest.mark.slow
def test_a_machine_without_loopback_gets_one_sentence(tmp_path: Path) -> None:
    script = (
        "from lnl.execution.ray_connection import connected\ntry:\n    with connected('local'): pass\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script], env=homeless(HOME="/"), capture_output=True, encoding="utf-8"
    )
    if "unshare" in done.stderr:
        pytest.skip("a network of its own is not permitted here")
    (sentence,) = done.stdout.splitlines()
    assert sentence.startswith("This machine cannot reach itself at 127.0.0.1, as Ray has to: bring its loopback up.")


def test_a_failed_start_says_why_and_what_the_machine_has_left(tmp_path: Path) -> None:
    from lnl.execution import ray_connection

    said = (
        "Failed to start GCS.  Last 1 lines of error files:\n[2026-11-29 23:28:57,218 C 1 1] (gcs_server) x.cc:134:  "
        "An unexpected system state has occurred. Check failed: server_ Failed to start the grpc server. The specified "
        "port is 43101. This means that Ray's core\n"
    )
    for reason, cause in {
        said: "server_ Failed to start the grpc server. The specified port is 43101.",
        "": "",
    }.items():
        sentence = ray_connection.why_not_started(tmp_path, reason)
        assert (
            cause in sentence and f"GiB of disk in {tmp_path.parent} free" in sentence and "GiB of memory" in sentence
        )
        assert len(sentence.splitlines()) == 1


def test_the_number_of_cpus_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lnl.execution import ray_connection

    assert ray_connection.own_options(tmp_path, 3)["num_cpus"] == 3
    assert ray_connection.own_options(tmp_path, None)["num_cpus"] == machine.cpus()
    assert ray_connection.own_options(tmp_path, None)["_system_config"]["worker_niceness"] == 0
    monkeypatch.setenv("RAY_worker_niceness", "7")
    assert "worker_niceness" not in ray_connection.own_options(tmp_path, None)["_system_config"], "a user's own stays"
    for wrong in ("0", "1.5", "-1", "many"):
        with pytest.raises(SystemExit):
            main(["run", "robmix_ablation", "--cpus", wrong])
        assert "give a whole number above zero" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert main(["run", "robmix_ablation", "--preset", "smoke", "--cpus", "2", "--storage", str(tmp_path)]) == 2
    assert "the cluster '10.0.0.1:6379' has its own: leave it out." in capsys.readouterr().err
