"""Which share of the machine's matrix peak do the forward and backward passes of a large network reach?

The peak is that of the fastest product of two square matrices or large convolution, measured in turn with epochs of
cross-entropy on random images of 32 × 32 pixels; operations of the network's passes are counted by torch.  One thread,
or a GPU.

    python benchmarks/peak.py [--network wide_resnet28_10 --device cuda --precision bfloat16]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from epoch import measure
from timing import in_turn, machine, made_up_images, waited
from torch.utils.flop_counter import FlopCounterMode

from lnl import networks
from lnl.training.precision import Precision
from lnl.trial.config import Trial, Validation
from lnl.trial.run import Execution

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of the square matrices
STEPS = 2  # of an epoch


class Speed(NamedTuple):
    """Operations a second of the network's passes, and of the fastest single operation."""

    passes: float
    peak: float


def operations(network: str, batch: int) -> int:
    """Of a forward and a backward pass."""
    backbone = networks.backbone(network, (3, 32, 32))
    counter = FlopCounterMode(display=False)
    with counter:
        backbone(torch.zeros(batch, 3, 32, 32)).sum().backward()
    return int(counter.get_total_flops())


def fastest(device: torch.device, precision: Precision) -> float:
    """Operations a second of the fastest of products of two square matrices and one large convolution.

    A library's product of matrices need not be the fastest: MKL's on a processor of AMD is slower than a convolution.
    """
    dtype = getattr(torch, precision)
    images = torch.randn(32, 320, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weights = torch.randn(320, 320, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "convolution": lambda: torch.nn.functional.conv2d(images, weights, padding=1)
    }
    work = {"convolution": 2 * images.numel() * 320 * 9}
    for size in SIZES[device.type]:
        matrix = torch.randn(size, size, device=device, dtype=dtype)
        calls[f"{size}"] = partial(torch.matmul, matrix, matrix)
        work[f"{size}"] = 2 * size**3
    waiting = {name: partial(waited, call, device) for name, call in calls.items()}
    return max(work[name] / seconds for name, seconds in in_turn(waiting, 5).items())


def speeds(network: str, device: torch.device, precision: Precision, batch: int, rounds: int) -> list[Speed]:
    """One for each round."""
    work = operations(network, batch) * STEPS
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(
            method={"name": "supervised", "batch_size": batch},
            dataset=made_up_images(Path(folder), STEPS * batch), network=network,
            precision=precision, validation=Validation(images=0), epochs=3,
        )  # fmt: skip
        for _ in range(rounds):
            phases = measure(trial, Execution(str(device), 1, Path(folder))).phases
            measured.append(Speed(work / (phases["forward"] + phases["backward"]), fastest(device, precision)))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wide_resnet28_10")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = speeds(options.network, options.device, options.precision, options.batch, options.rounds)
    passes, peak = (median(values) / 1e9 for values in zip(*measured, strict=True))
    share = median(speed.passes / speed.peak for speed in measured)
    print(f"{options.network}, {options.precision}, batch {options.batch}, {machine(options.device)}\n")
    print("| forward and backward, GFLOP/s | fastest single operation, GFLOP/s | share |\n|--:|--:|--:|")
    print(f"| {passes:,.1f} | {peak:,.1f} | {share:.0%} |")


if __name__ == "__main__":
    main()
