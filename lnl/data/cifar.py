"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images, 32×32, in the python version's order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lnl.data import npz
from lnl.data.cache import file_stamp
from lnl.data.dataset import Contents, Source, Split, chunks
from lnl.data.download import through_torchvision
from lnl.storage.files import is_there

_CLASSES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
        lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """,
}
# The field's customary values: the .2023 … are means of per-image deviations, the pixels' own are .2470 .2435 .2616.
_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4867, 0.4408)}
_STD = {"cifar10": (0.2023, 0.1994, 0.2010), "cifar100": (0.2675, 0.2565, 0.2761)}


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    path = root / f"{name}.npz"
    local = is_there(path)
    return Source(name, file_stamp(path) if local else "torchvision", partial(_read, name, root), local)


def _read(name: str, root: Path) -> Contents:
    path = root / f"{name}.npz"
    contents = npz.read(path) if is_there(path) else _download(name, root)
    return replace(contents, class_names=tuple(_CLASSES[name].split()), flip=True, mean=_MEAN[name], std=_STD[name])


def _download(name: str, root: Path) -> Contents:
    from torchvision import datasets  # seconds of import, and only the first process needs it

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    train, test = (through_torchvision(name, kind, root, train=train) for train in (True, False))
    return Contents(
        train=_split(train.data, train.targets), test=_split(test.data, test.targets), class_names=(), flip=True
    )


def _split(images: np.ndarray, labels: list[int]) -> Split:
    return Split(chunks(images.transpose(0, 3, 1, 2)), np.asarray(labels, np.int64))
