"""What does a study cost beside the same trials in plain processes, and what do two cores give over one?

The trials are some of `make study`.  In turn, each in fresh processes: `lnl run` on two cores (Ray, leases,
checkpoints, parquet, progress; no report), two processes that train half of the trials each and store nothing, and one
process that trains one of these halves alone on one core.  Prints medians over the rounds and ratios.

    python benchmarks/study.py [--replicates 2 --rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

STUDY = Path(__file__).parents[1] / "studies" / "robmix_ablation.py"
ARMS = "full,mixmatch_only,supervised"
PLAIN = """
import json, sys
from lnl.trial.config import parse
from lnl.trial.run import Execution, run
for trial in json.load(sys.stdin):
    for row in run(parse(trial), Execution("cpu", 1)):
        pass
"""


def halves(replicates: int) -> list[str]:
    """The trials as JSON, those of even and of odd replicates, so that each half has the same arms."""
    from lnl.cli.studies import find_study

    plan = find_study(str(STUDY)).plan("digits", replicates=replicates)
    trials = [planned.trial for planned in plan.trials if planned.arm in ARMS.split(",")]
    return [
        json.dumps([trial.model_dump(mode="json") for trial in trials if trial.replicate % 2 == half])
        for half in (0, 1)
    ]


def in_processes(parts: Sequence[str], cores: Sequence[int]) -> None:
    """Train each part in a process of its own, on a core of its own."""
    started = []
    for part, core in zip(parts, cores, strict=True):
        command = ["taskset", "--cpu-list", str(core), sys.executable, "-c", PLAIN]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, encoding="utf-8")
        assert process.stdin is not None
        process.stdin.write(part)
        process.stdin.close()
        started.append(process)
    assert [process.wait() for process in started] == [0] * len(started)


def as_study(replicates: int) -> None:
    """Train all of them with `lnl run`, into an empty folder."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, str(STUDY), "--preset", "digits", "--arms", ARMS, "--replicates", str(replicates)]
        command += ["--address", "local", "--cpus", "2", "--no-report", "--storage", results]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(replicates: int) -> tuple[float, float, float]:
    """Seconds of one round: `lnl run` on two cores, two plain processes at once, and one of these alone."""
    parts, cores = halves(replicates), sorted(os.sched_getaffinity(0))[:2]
    return (
        seconds(lambda: as_study(replicates)),
        seconds(lambda: in_processes(parts, cores)),
        seconds(lambda: in_processes(parts[:1], cores[:1])),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2, help="an even number")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured = [measure(options.replicates) for _ in range(options.rounds)]
    ours, two, one = (median(values) for values in zip(*measured, strict=True))
    trials = sum(len(json.loads(part)) for part in halves(options.replicates))
    print(f"{trials} trials, {options.rounds} rounds in turn, load {os.getloadavg()[0]:.1f}\n")
    print("| | seconds | ratio |\n|--|--:|--:|")
    print(f"| `lnl run` on two cores; two plain processes | {ours:.1f}; {two:.1f} | {ours / two:.2f} |")
    print(f"| two processes at once; one of them alone | {two:.1f}; {one:.1f} | {2 * one / two:.2f} |")


if __name__ == "__main__":
    main()
