"""What bfloat16 gains over float32 on this device, network by network: passes of a training step, and of evaluation.

Medians of milliseconds for 64 images, in turn, on one CPU thread or a GPU.  From such a table comes the size of network
from which `precision="auto"` chooses bfloat16, see `lnl.training.precision`.

    python benchmarks/precision.py [--device cuda --repeats 7]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from timing import in_turn, machine, waited
from torch import Tensor
from torch.nn.functional import cross_entropy

from lnl.networks import Network
from lnl.system import memory
from lnl.training import precision
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.precision import Computed
from lnl.training.streams import Streams

BATCH, CLASSES = 64, 10
PRECISIONS: tuple[Computed, ...] = ("float32", "bfloat16")
NETWORKS = (  # name, pixels per side; without pixels: of vectors of 512
    *(("mlp", 0), ("small_convnet", 8), ("convnet_002", 8), ("preact_resnet18", 8), ("small_convnet", 32)),
    *(("convnet_002", 32), ("wide_resnet28_2", 32), ("preact_resnet18", 32), ("co_teaching_cnn", 32)),
)


def loss(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return cross_entropy(network(images).float(), labels)


def measure(name: str, size: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of `train` and `evaluate` in each precision."""
    shape = (3, size, size) if size else (512,)
    images = torch.randn(BATCH, *shape, device=device)
    images = images.to(memory_format=torch.channels_last) if size else images
    labels = torch.arange(BATCH, device=device) % CLASSES

    contestants = {}
    for kind in PRECISIONS:
        builder = NetworkBuilder(name, shape, device, kind, Streams(0))
        learner = Learner.classifier(builder, Optimizer(kind="sgd"), 1, CLASSES)
        contestants[f"train {kind}"] = partial(waited, partial(learner.gradients, loss, (images, labels)), device)
        contestants[f"evaluate {kind}"] = partial(waited, partial(learner.logits, images), device)
    return in_turn(contestants, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory.keep_freed()  # as workers do
    device = torch.device(options.device)
    print(f"{BATCH} images, {machine(device)}\n")
    print("| network | pixels | multiplications | float32, ms | bfloat16, ms | ratio | evaluation | | ratio | auto |")
    print("|--|--|--:|--:|--:|--:|--:|--:|--:|--|")
    for name, size in NETWORKS:
        shape = (3, size, size) if size else (512,)
        backbone = NetworkBuilder(name, shape, device, "float32", Streams(0)).build({}).backbone
        seconds = measure(name, size, device, options.repeats)
        cells = [name, f"{size}²" if size else "–", f"{precision.multiplications(backbone, shape, device):,}"]
        for work in ("train", "evaluate"):
            single, half = (seconds[f"{work} {kind}"] for kind in PRECISIONS)
            cells += [f"{1000 * single:.1f}", f"{1000 * half:.1f}", f"{single / half:.2f}"]
        cells.append(precision.computed("auto", backbone, shape, device)[0])
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
