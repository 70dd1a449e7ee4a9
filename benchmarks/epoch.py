"""Which share of a training epoch is spent outside the network's forward and backward passes?

Outside are drawing batches, augmentation, mixing, losses, optimizer, averaging and bookkeeping.  Prints one Markdown
table; shares are medians over epochs of one run, after one epoch of warm-up.

    python benchmarks/epoch.py [--network wide_resnet28_2 --dataset cifar10 --device cuda --precision bfloat16]
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lnl.networks import Network
from lnl.training.task import Noise
from lnl.trial.config import Trial
from lnl.trial.run import Execution, assemble


class Stopwatch:
    """Adds up the time inside wrapped calls; nested calls count once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.depth = device, 0.0, 0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, call: Any) -> Any:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began, self.depth = self.now(), self.depth + 1
            try:
                return call(*arguments, **keywords)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += self.now() - began

        return timed


def measure(trial: Trial, execution: Execution, epochs: int) -> tuple[float, float]:
    """Median seconds of a training epoch and of its part outside the network."""
    device = execution.torch_device()
    method, _, _ = assemble(trial, execution)
    watch = Stopwatch(device)
    before = Network.forward, Network.features, torch.autograd.grad
    Network.forward, Network.features = watch.wrap(Network.forward), watch.wrap(Network.features)  # type: ignore[method-assign]
    torch.autograd.grad = watch.wrap(torch.autograd.grad)
    try:
        totals = []
        for epoch in range(epochs + 1):
            watch.seconds = 0.0
            began = watch.now()
            method.train_epoch(epoch)
            total = watch.now() - began
            totals.append((total, total - watch.seconds))
    finally:
        Network.forward, Network.features, torch.autograd.grad = before  # type: ignore[method-assign]
    return median(total for total, _ in totals[1:]), median(outside for _, outside in totals[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--network", default="small_convnet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, one thread"
    print(f"{options.dataset}, {options.network}, {options.precision}, batch 64, {name}, torch {torch.__version__}\n")
    print("| method | step, ms | outside the network |\n|---|---|---|")
    for method in ("supervised", "mixmatch", "simclr", "robmix"):
        trial = Trial(
            method={"name": method, "batch_size": 64}, dataset=options.dataset, network=options.network, labels=250,
            noise=Noise("symmetric", 0.4), epochs=options.epochs + 1, steps=options.steps, precision=options.precision,
        )  # fmt: skip
        total, outside = measure(trial, Execution(options.device, 1, options.data), options.epochs)
        print(f"| {method} | {1000 * total / options.steps:.2f} | {outside / total:.0%} |")


if __name__ == "__main__":
    main()
