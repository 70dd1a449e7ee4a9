"""Food-101N (Lee et al. 2018, arXiv:1711.07131): 310,009 images of 101 dishes from the web, some 20 % wrongly labelled.

In the folder of data sets, as they are published:

    Food-101N_release/meta/     imagelist.tsv (`CLASS/FILE` a line), classes.txt, verified_train.tsv (and whether a
                                person found the class right: 1 or 0); each begins with a line of titles
    Food-101N_release/images/   the files, <class>/*
    food-101/                   Food-101 (Bossard et al. 2014), whose test images are the test set: meta/test.txt,
                                images/

The labels are the column `web`; the true class is known of the images that people found right.  Option: `?size=299`
(else 224).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from lnl.data.cache import file_stamp, find
from lnl.data.dataset import Contents, DataError, Source
from lnl.data.file_lists import DEFAULT_SIZE, MEAN, STD, lines, size_of, split
from lnl.storage.files import printable, shown

COLUMN = "web"


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    _, question, option = name.partition("?")
    size = size_of(name, option) if question else DEFAULT_SIZE
    release, food101 = find("Food-101N_release", root, name), find("food-101", root, name)
    lists = [release / "meta" / file for file in ("classes.txt", "imagelist.tsv", "verified_train.tsv")]
    tested = food101 / "meta" / "test.txt"
    return Source(f"food101n-{size}", file_stamp(*lists, tested), partial(_read, lists, tested, size))


def _read(lists: list[Path], tested: Path, size: int) -> Contents:
    classes, listed, verified = (lines(path)[1:] for path in lists)
    names = sorted(line.strip() for line in classes)
    numbers = {name: number for number, name in enumerate(names)}
    right = {file for file, _, answer in (line.partition("\t") for line in verified) if answer.strip() == "1"}
    files = [line.strip() for line in listed]
    web = _classes(lists[1], files, numbers)
    tests = [f"{line.strip()}.jpg" for line in lines(tested)]
    release, food101 = lists[0].parents[1], tested.parents[1]
    known = np.array([file in right for file in files], dtype=bool)
    return Contents(
        train=split(release, [f"images/{file}" for file in files], np.where(known, web, -1), size),
        test=split(food101, [f"images/{file}" for file in tests], _classes(tested, tests, numbers), size),
        class_names=tuple(names),
        flip=True,
        mean=MEAN,
        std=STD,
        given={COLUMN: web},
    )


def _classes(path: Path, files: list[str], numbers: dict[str, int]) -> np.ndarray:
    """The class of each file by its folder (N,).  Raises `DataError` where that is none."""
    folders = [file.partition("/")[0] for file in files]
    if unknown := next((folder for folder in folders if folder not in numbers), None):
        raise DataError(f"{shown(path)} names the class '{printable(unknown)}', which classes.txt does not have.")
    return np.array([numbers[folder] for folder in folders], dtype=np.int64)
