"""What a GPU makes of the platform, in under ten minutes: one script for whoever has one.

Tables: steps a second of every method, in float32 and bfloat16, and where the host waits for the GPU inside an epoch;
trials an hour with several trials on the GPU at once, with and without NVIDIA's MPS where it is installed; images a
second of the augmentations.  Images are made up, so no data set is needed.  Methods that are left when `--minutes` are
over are named.  `--device cpu` shows that everything runs where there is no GPU.

    python benchmarks/gpu.py [--network wide_resnet28_2 --at-once 1 2 4 8 --minutes 9] > benchmarks/gpu.md
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import augmentation
import torch
from epoch import BATCH, TRAINING, fields_of, measure
from timing import machine, made_up_images

from lnl.training.precision import Precision
from lnl.training.task import Noise
from lnl.trial.config import Trial, Validation
from lnl.trial.run import Execution, run

IMAGES, STEPS, EPOCHS = 2_048, 16, 3
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ALONE = """
import json, sys
from pathlib import Path
from lnl.trial.config import parse
from lnl.trial.run import Execution, run
rows = run(parse(json.loads(sys.argv[1])), Execution(sys.argv[2], 1, Path(sys.argv[3])))
next(rows)
print("warm", flush=True)
sys.stdin.readline()
for row in rows:
    pass
"""


def trial_of(name: str, dataset: str, network: str, precision: Precision, epochs: int = EPOCHS) -> Trial:
    return Trial(
        method=fields_of(name), dataset=dataset, network=network, precision=precision,
        noise=Noise("symmetric", 0.4), labels=IMAGES // 4, unlabelled_ratio=1, probe=100, steps=STEPS,
        validation=Validation(images=0), epochs=epochs,
    )  # fmt: skip


def steps_a_second(trial: Trial, execution: Execution) -> float:
    """Training steps, evaluation left out."""
    phases = measure(trial, execution).phases
    phases.pop("evaluation")
    return STEPS / sum(phases.values())


def synchronisations(trial: Trial, execution: Execution) -> str:
    """Places where the host waits for the GPU inside of training steps, and how often in an epoch."""
    if execution.torch_device().type != "cuda":
        return "no GPU"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in run(trial, execution):
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = [f"{Path(item.filename).name}:{item.lineno}" for item in told if "synchroniz" in str(item.message)]
    inside = [line for line in lines if not line.startswith(("evaluation.py", "run.py"))]
    counted = sorted({line: inside.count(line) / trial.epochs for line in inside}.items(), key=lambda item: -item[1])
    return ", ".join(f"{line} × {count:.1f}" for line, count in counted[:4]) or "none"


def all_methods(folder: Path, dataset: str, options: argparse.Namespace, until: float) -> None:
    execution = Execution(options.device, 1, folder)
    print(f"| method | {' | '.join(f'{name}, steps a second' for name in PRECISIONS)} | the host waits, an epoch |")
    print("|--|--:|--:|--|")
    names = options.methods
    for place, name in enumerate(names):
        if time.monotonic() > until:
            print(f"\nNo time was left for {', '.join(names[place:])}.")
            return
        speeds = [
            steps_a_second(trial_of(name, dataset, options.network, precision), execution) for precision in PRECISIONS
        ]
        waits = synchronisations(trial_of(name, dataset, options.network, "float32"), execution)
        print(f"| {name} | {' | '.join(f'{speed:.1f}' for speed in speeds)} | {waits} |", flush=True)


@contextlib.contextmanager
def mps(on: bool) -> Iterator[None]:
    """Within the block, NVIDIA's multi-process service runs."""
    control = "nvidia-cuda-mps-control"
    if on:
        subprocess.run([control, "-d"], check=True)
    try:
        yield
    finally:
        if on:
            subprocess.run([control], input=b"quit\n", check=True)


def trials_at_once(count: int, folder: Path, dataset: str, options: argparse.Namespace) -> float:
    """Trials of FixMatch an hour, each of a hundred epochs, by the pace of short ones; starting does not count."""
    trial = trial_of("fixmatch", dataset, options.network, "bfloat16" if options.device != "cpu" else "float32", 5)
    command = [sys.executable, "-c", ALONE, trial.model_dump_json(), options.device, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"warm\n"
    began = time.perf_counter()
    for process in started:
        process.communicate(b"go\n")
    assert not any(process.returncode for process in started)
    return count * 3600 * (trial.epochs - 1) / 100 / (time.perf_counter() - began)


def side_by_side(folder: Path, dataset: str, options: argparse.Namespace, until: float) -> None:
    services = [False, True] if options.device != "cpu" and shutil.which("nvidia-cuda-mps-control") else [False]
    print(f"\n| trials at once | {' | '.join('with MPS' if on else 'trials an hour' for on in services)} |")
    print("|--:" * (1 + len(services)) + "|")
    measured: dict[int, list[str]] = {count: [] for count in options.at_once}
    for on in services:
        with mps(on):
            for count, cells in measured.items():
                in_time = time.monotonic() < until
                cells.append(f"{trials_at_once(count, folder, dataset, options):.1f}" if in_time else "no time left")
    for count, cells in measured.items():
        print(f"| {count} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--network", default="wide_resnet28_2")
    parser.add_argument("--methods", nargs="+", default=TRAINING, choices=TRAINING, metavar="METHOD")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--minutes", type=float, default=9, help="that all may take; methods get two thirds of it")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu shows that the script runs")
    device, began = torch.device(options.device), time.monotonic()
    print(f"{options.network}, 3 × 32 × 32, batch {BATCH}, {machine(device)}\n")
    with tempfile.TemporaryDirectory() as folder:
        dataset = made_up_images(Path(folder), IMAGES)
        all_methods(Path(folder), dataset, options, began + 40 * options.minutes)
        side_by_side(Path(folder), dataset, options, began + 55 * options.minutes)
    print("\n" + augmentation.table(augmentation.measure(device, 256, 5), 256))


if __name__ == "__main__":
    main()
