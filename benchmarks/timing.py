"""What benchmarks share: contestants measured in turn, made-up images, and how the machine is named."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch


def in_turn(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each, after a first call that does not count.

    They take turns, so that what else the machine does slows all of them.  `clock`: `time.process_time` counts this
    process's CPU seconds alone.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, call in contestants.items():
            began = clock()
            call()
            if repeat:
                seconds[name].append(clock() - began)
    return {name: median(times) for name, times in seconds.items()}


def waited(call: Callable[[], object], device: torch.device) -> None:
    """Call, and wait for the GPU where the work is one's."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()


def machine(device: torch.device) -> str:
    """What measured: the GPU's name, or the processor's, and torch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu.read_text(encoding="utf-8")) if cpu.exists() else []
    name = names[0] if names else f"{platform.machine()} CPU"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}"


def largest_memory() -> float:
    """MB that this process has held at most.  `getrusage` would tell our parent's peak where that is larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def made_up_images(folder: Path, count: int) -> str:
    """The name of a data set of so many random images, 3 × 32 × 32, of ten classes; test images are others."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10
    test = min(count, 256)
    path = folder / "images.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=255 - images[:test], y_test=labels[:test])
    return f"npz:{path}"
