"""How many images a second do the augmentation pipelines make, against torchvision image by image and kornia?

From batches of 3×32×32 uint8 images to normalised float32 batches.  The repetitions of all contestants are interleaved,
so that a busy machine slows all of them; what counts are the ratios of the medians, printed as one Markdown table.

    python benchmarks/augmentation.py [--device cuda --batch 256 --repeats 15 --threads 1]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from lnl.functional import augment

SIZE, CHANNELS = 32, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NAMES = ("weak", "strong", "contrastive")
CONTESTANTS = {
    "ours": "ours",
    "torchvision": "torchvision per image",
    "kornia": "kornia per image¹",
    "torchvision_batch": "torchvision on the batch²",
}
NOTES = {
    "kornia": "¹ Its RandAugment draws the operations once for the whole batch.",
    "torchvision_batch": "² No substitute: every image of the batch gets the same parameters.",
}
Augment = Callable[[Tensor], Tensor]


def ours(name: str, device: torch.device) -> Augment:
    augmentation = augment.pipeline(name, size=SIZE, channels=CHANNELS, flip=True, mean=MEAN, std=STD)
    generator = torch.Generator(device).manual_seed(0)
    return lambda images: augmentation(images, generator)


def torchvision(name: str) -> v2.Compose:
    """The same pipeline of torchvision's own transforms; its RandAugment has one magnitude for all operations."""
    weak = [v2.RandomCrop(SIZE, padding=SIZE // 8, padding_mode="reflect"), v2.RandomHorizontalFlip()]
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    cutout = v2.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=0.5)
    pipelines = {
        "weak": [*weak, *finish],
        "strong": [*weak, v2.RandAugment(num_ops=2), finish[0], cutout, finish[1]],
        "contrastive": [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            *finish,
        ],
    }
    return v2.Compose(pipelines[name])


def kornia(name: str) -> Augment | None:
    """The same pipeline of kornia's own transforms, or None where kornia is not installed."""
    try:
        import kornia.augmentation as K
        from kornia.augmentation.auto import RandAugment
    except ImportError:
        return None
    weak = [K.RandomCrop((SIZE, SIZE), padding=SIZE // 8, padding_mode="reflect"), K.RandomHorizontalFlip()]
    normalise = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
    cutout = K.RandomErasing(scale=(0.25, 0.25), ratio=(1.0, 1.0), value=0.5, p=1.0)
    pipelines: dict[str, list[nn.Module]] = {
        "weak": [*weak, normalise],
        "strong": [*weak, RandAugment(n=2, m=10), cutout, normalise],
        "contrastive": [
            K.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0)),
            K.RandomHorizontalFlip(),
            K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            normalise,
        ],
    }
    sequence = nn.Sequential(*pipelines[name])
    return lambda images: sequence(images.float() / 255)


def contestants(name: str, device: torch.device) -> dict[str, Augment]:
    transform, optional = torchvision(name), kornia(name)
    return {
        "ours": ours(name, device),
        "torchvision": lambda images: torch.stack([transform(image) for image in images]),
        **({"kornia": optional} if optional else {}),
        "torchvision_batch": transform,
    }


def seconds(function: Augment, images: Tensor) -> float:
    synchronise = torch.cuda.synchronize if images.is_cuda else lambda: None
    synchronise()
    start = time.perf_counter()
    function(images)
    synchronise()
    return time.perf_counter() - start


def measure(device: torch.device, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds for one batch, by pipeline and contestant; one untimed warm-up, then interleaved repetitions."""
    images = torch.randint(0, 256, (batch, CHANNELS, SIZE, SIZE), dtype=torch.uint8, device=device)
    functions = {(name, kind): function for name in NAMES for kind, function in contestants(name, device).items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in functions}
    for repeat in range(repeats + 1):
        for key, function in functions.items():
            elapsed = seconds(function, images)
            if repeat:
                times[key].append(elapsed)
    medians: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for (name, kind), values in times.items():
        medians[name][kind] = statistics.median(values)
    return medians


def table(medians: dict[str, dict[str, float]], batch: int) -> str:
    """Markdown: images a second, and in brackets the ratio to torchvision image by image."""
    kinds = [kind for kind in CONTESTANTS if kind in medians[NAMES[0]]]
    lines = ["| pipeline | " + " | ".join(CONTESTANTS[kind] for kind in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, row in medians.items():
        cells = [f"{batch / row[kind]:,.0f} ({row['torchvision'] / row[kind]:.1f}×)" for kind in kinds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = [note for kind, note in NOTES.items() if kind in kinds]
    if "kornia" not in kinds:
        notes.append("kornia is not installed (pip install kornia): its column is missing.")
    return "\n".join([*lines, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kornia's notices, printed between the repetitions
        medians = measure(arguments.device, arguments.batch, arguments.repeats)
    on_gpu = arguments.device.type == "cuda"
    processor = f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    device = torch.cuda.get_device_name(arguments.device) if on_gpu else processor
    print(
        f"Images a second and ratio to torchvision image by image: 3×{SIZE}×{SIZE}, batch {arguments.batch}, "
        f"median of {arguments.repeats} interleaved repetitions, {arguments.threads} thread(s), {device}, "
        f"torch {torch.__version__}.\n"
    )
    print(table(medians, arguments.batch))


if __name__ == "__main__":
    main()
