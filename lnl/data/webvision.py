"""WebVision 1.0 (Li et al. 2017, arXiv:1708.02862): what Google and Flickr find for the names of ImageNet's classes.

`webvision` has all 1,000 classes, `webvision_mini` (Jiang et al. 2018) the first 50 and Google's images alone.  In the
folder of data sets, as they are published:

    webvision/info/   train_filelist_google.txt, train_filelist_flickr.txt, val_filelist.txt: `FILE CLASS` a line
                      synsets.txt: the classes in their order, `n01440764 tench, …` a line
    webvision/        the files that these name, google/… and flickr/…; those of val below val_images_256 or val_images
    imagenet/         not needed: train/<synset>/*, of which the first 10 a class are trusted images, and val/<synset>/*

The labels are the column `web`; true ones are known of the trusted images alone.  Options: `?size=299` (else 224), and
`test=imagenet`, which tests on ImageNet's validation images and not on WebVision's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lnl.data.cache import file_stamp, find
from lnl.data.dataset import Contents, DataError, Source, Split
from lnl.data.file_lists import DEFAULT_SIZE, MEAN, STD, lines, numbered, size_of, split
from lnl.storage.files import printable, shown
from lnl.storage.places import short_hash

MINI_CLASSES = 50
TRUSTED = 10  # of a class, as document 004 has them
COLUMN = "web"


@dataclass(frozen=True)
class _Layout:
    """Where the parts of the data set are, and which of them are asked for."""

    root: Path  # of all data sets
    webvision: Path
    synsets: tuple[str, ...]  # in the order of classes
    class_names: tuple[str, ...]
    searches: tuple[str, ...]  # google, flickr
    size: int
    on_imagenet: bool

    @property
    def lists(self) -> list[Path]:
        names = [*(f"train_filelist_{search}.txt" for search in self.searches), "val_filelist.txt", "synsets.txt"]
        return [self.webvision / "info" / name for name in names]


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    kind, _, options = name.partition("?")
    size, on_imagenet = DEFAULT_SIZE, False
    for option in filter(None, options.split("&")):
        if option == "test=imagenet":
            on_imagenet = True
        else:
            size = size_of(name, option)
    folder = find("webvision", root, name)
    mini = kind == "webvision_mini"
    known = [line.partition(" ") for line in lines(folder / "info" / "synsets.txt")][: MINI_CLASSES if mini else None]
    layout = _Layout(
        folder.parent,
        folder,
        tuple(synset for synset, _, _ in known),
        tuple(f"{words.partition(',')[0]} {synset}".strip() for synset, _, words in known),
        ("google",) if mini else ("google", "flickr"),
        size,
        on_imagenet,
    )
    trusted = _of_imagenet(layout, "train", TRUSTED)
    stamp = f"{file_stamp(*layout.lists)} {short_hash(printable(chr(10).join(trusted[0])))}"
    key = f"{kind}-{size}{'-imagenet' if on_imagenet else ''}"
    return Source(key, stamp, partial(_read, layout, trusted))


def _read(layout: _Layout, trusted: tuple[list[str], np.ndarray]) -> Contents:
    files, labels = [], []
    for path in layout.lists[: len(layout.searches)]:
        of_search, of_files = numbered(path, len(layout.synsets))
        files += [f"{layout.webvision.name}/{file}" for file in of_search]
        labels.append(of_files)
    web = np.concatenate(labels)
    unknown, none = np.full_like(web, -1), np.full_like(trusted[1], -1)
    return Contents(
        train=split(layout.root, files + trusted[0], np.concatenate([unknown, trusted[1]]), layout.size),
        test=_test(layout),
        class_names=layout.class_names,
        flip=True,
        mean=MEAN,
        std=STD,
        given={COLUMN: np.concatenate([web, none])},
    )


def _test(layout: _Layout) -> Split:
    if layout.on_imagenet:
        files, labels = _of_imagenet(layout, "val")
        if not files:
            raise DataError(
                f"{shown(layout.root / 'imagenet' / 'val')} has no folder of images for each synset: arrange them so, "
                "or leave out test=imagenet."
            )
        return split(layout.root, files, labels, layout.size)
    files, labels = numbered(layout.webvision / "info" / "val_filelist.txt", len(layout.synsets))
    small = layout.webvision / "val_images_256"
    folder = small if small.is_dir() else layout.webvision / "val_images"
    return split(layout.root, [f"webvision/{folder.name}/{file}" for file in files], labels, layout.size)


def _of_imagenet(layout: _Layout, part: str, most: int | None = None) -> tuple[list[str], np.ndarray]:
    """Files below `root` and classes (n,) of ImageNet's images of a part, at most `most` of a class."""
    files: list[str] = []
    labels: list[int] = []
    for label, synset in enumerate(layout.synsets):
        folder = layout.root / "imagenet" / part / synset
        names = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
        files += [f"imagenet/{part}/{synset}/{name}" for name in names[:most]]
        labels += [label] * len(names[:most])
    return files, np.array(labels, dtype=np.int64)
