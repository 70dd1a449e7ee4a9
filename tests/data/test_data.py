"""Data sets: what was put in comes out, the cache under damage and haste, downloads from a local server, refusals."""

import errno
import functools
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lnl import data
from lnl.data import DataError, Dataset, cache, download

REPOSITORY = Path(__file__).parents[2]
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def pictures(count, size=4, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def arrays(**changes):
    contents = {
        "x_train": pictures(12),
        "y_train": np.arange(12) % 3,
        "x_test": pictures(6, seed=1),
        "y_test": np.arange(6) % 3,
    }
    return {key: value for key, value in (contents | changes).items() if value is not None}


def write(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


def refused(name, root, *words):
    """Loading fails with one sentence that has the words and a remedy behind a colon."""
    with pytest.raises(DataError) as error:
        data.load(name, root)
    one_sentence(error, *words)


def one_sentence(error, *words):
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ": " in text, text
    assert ". " not in text, text
    for word in words:
        assert word in text, text


def same(a: Dataset, b: Dataset) -> bool:
    return a.checksum == b.checksum and all(np.array_equal(getattr(a, key), getattr(b, key)) for key in ARRAYS)


# ---- sources


def test_digits_are_scikit_learns_and_always_split_alike(root):
    from sklearn.datasets import load_digits

    digits = data.load("digits", root)
    assert digits.checksum == "1976acdd287f3963"  # results of earlier days rest on this very split
    assert digits.train_images.shape == (1437, 1, 8, 8) and digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int64
    images = np.concatenate([digits.train_images, digits.test_images])[:, 0]
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    original = load_digits()

    def multiset(grey, of):
        return sorted((int(label), image.round().astype(int).tobytes()) for image, label in zip(grey, of, strict=True))

    assert multiset(images * (16 / 255), labels) == multiset(original.images, original.target)
    assert images.max() == 255 and images.min() == 0
    shares = np.bincount(digits.test_labels) / np.bincount(labels)
    assert np.abs(shares - 360 / 1797).max() < 0.005  # stratified
    assert not digits.flip and digits.class_names == tuple("0123456789")
    assert data.load("digits", root).train_images[:].tobytes() == digits.train_images.tobytes()


def test_npz_is_turned_into_channels_first(root):
    x = pictures(12)
    write(root / "mine.npz", x_train=x, class_names=np.array(["a", "b", "c"]))
    mine = data.load("npz:mine.npz", root)
    assert mine.name == "npz:mine.npz" and mine.class_names == ("a", "b", "c") and mine.flip
    assert np.array_equal(mine.train_images, x.transpose(0, 3, 1, 2)) and mine.train_images.flags.c_contiguous
    assert np.array_equal(mine.test_images, pictures(6, seed=1).transpose(0, 3, 1, 2))
    assert mine.mean == pytest.approx((x / 255).mean((0, 1, 2)))
    assert mine.std == pytest.approx((x / 255).std((0, 1, 2)))
    assert isinstance(mine.train_images, np.memmap) and not mine.train_images.flags.writeable


def test_npz_with_grey_images_unlabelled_images_and_no_mirror(root):
    grey = pictures(12, channels=1)[..., 0]
    extra = pictures(700, channels=1, seed=5)[..., 0]  # more than one chunk
    write(
        root / "grey.npz",
        x_train=grey,
        x_test=grey[:6],
        x_unlabelled=extra,
        y_train=np.arange(12, dtype=np.uint8) % 3,
        flip=False,
    )
    mine = data.load("npz:grey.npz", root)
    assert mine.train_images.shape == (712, 1, 4, 4) and not mine.flip
    assert np.array_equal(mine.train_images[12:, 0], extra)
    assert mine.train_labels[:12].tolist() == [0, 1, 2] * 4 and (mine.train_labels[12:] == -1).all()
    assert mine.class_names == ("0", "1", "2") and mine.train_labels.dtype == np.int64


def test_moments_are_exact():
    images = pictures(1500, size=7).transpose(0, 3, 1, 2)
    images[:, 1] = 77
    mean, std = cache.moments(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)), rel=1e-12)
    expected = (images / 255).std((0, 2, 3))
    assert std == pytest.approx((expected[0], 1, expected[2]), rel=1e-10)


def test_path_is_taken_from_root_then_from_the_current_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.npz", class_names=np.array(["here", "b", "c"]))
    assert data.load("npz:mine.npz", root).class_names[0] == "here"
    write(root / "mine.npz", class_names=np.array(["root", "b", "c"]))
    assert data.load("npz:mine.npz", root).class_names[0] == "root"
    assert data.load(f"npz:{tmp_path / 'mine.npz'}", root).class_names[0] == "here"


def test_root_comes_from_the_environment(root, monkeypatch):
    write(root / "mine.npz")
    monkeypatch.setenv("LNL_DATA", str(root))
    assert data.load("npz:mine.npz").train_images.shape == (12, 3, 4, 4)
    assert (root / "cache").is_dir()


@pytest.mark.parametrize(
    ("name", "classes", "first", "last"), [("cifar10", 10, "airplane", "truck"), ("cifar100", 100, "apple", "worm")]
)
def test_cifar_from_npz_has_its_names_and_customary_moments(root, name, classes, first, last):
    x = pictures(classes, size=32)
    write(root / f"{name}.npz", x_train=x, y_train=np.arange(classes), x_test=x, y_test=np.arange(classes))
    cifar = data.load(name, root)
    assert (len(cifar.class_names), cifar.class_names[0], cifar.class_names[-1]) == (classes, first, last)
    assert cifar.flip and len(set(cifar.class_names)) == classes
    mean, std = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }[name]
    assert cifar.mean == mean and cifar.std == std


def test_cifar_from_npz_must_have_three_channels(root):
    x = pictures(10, size=32, channels=1)
    write(root / "cifar10.npz", x_train=x, y_train=np.arange(10), x_test=x, y_test=np.arange(10))
    refused("cifar10", root, "3 channels", "have 1")


def test_stl10_from_npz(root):
    x = pictures(10, size=96)
    write(
        root / "stl10.npz",
        x_train=x,
        y_train=np.arange(10),
        x_test=x,
        y_test=np.arange(10),
        x_unlabelled=pictures(4, size=96, seed=2),
    )
    stl = data.load("stl10", root)
    assert stl.train_labels.tolist() == [*range(10), -1, -1, -1, -1]
    assert stl.class_names == ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    assert stl.mean == (0.4467, 0.4398, 0.4066) and stl.std == (0.2603, 0.2566, 0.2713)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_test": None, "x_test": None}, ["x_test, y_test"]),
        ({"y_train": np.arange(11) % 3}, ["12 images", "11 labels"]),
        ({"y_train": np.arange(13) % 3, "x_unlabelled": pictures(1)}, ["12 images", "13 labels"]),
        ({"x_unlabelled": pictures(2), "y_train": np.arange(11) % 3}, ["12 images", "11 labels"]),
        ({"x_train": pictures(12).astype(np.float32)}, ["x_train", "float32", "uint8"]),
        ({"x_train": pictures(12).transpose(0, 2, 1, 3)[:, :, :, :1].repeat(9, 3)}, ["channels come last"]),
        ({"x_train": np.zeros((12, 3), np.uint8)}, ["x_train", "(12, 3)"]),
        ({"x_test": pictures(6, size=5)}, ["3×4×4", "3×5×5"]),
        ({"x_unlabelled": pictures(6, size=5)}, ["x_unlabelled", "3×5×5", "3×4×4"]),
        ({"x_unlabelled": pictures(6, channels=1)}, ["x_unlabelled", "1×4×4", "3×4×4"]),
        ({"x_unlabelled": pictures(6) / 255}, ["x_unlabelled", "float64"]),
        ({"class_names": np.array("abc")}, ["class_names", "one text for each class"]),
        ({"class_names": np.array([b"a", b"b", b"c"])}, ["class_names", "one text for each class"]),
        ({"class_names": np.arange(3)}, ["class_names", "int64"]),
        ({"class_names": np.array([["a", "b", "c"]])}, ["class_names", "(1, 3)"]),
        ({"class_names": np.array(["a", "b", "a"])}, ["two classes are called 'a'"]),
        ({"class_names": np.array(["a", "caf\udce9", "b"])}, ["the class name 'caf\\udce9' is not UTF-8"]),
        ({"flip": np.array("no")}, ["flip", "True or False"]),
        ({"flip": np.array([True, False])}, ["flip", "(2,)"]),
        ({"flip": np.array(2)}, ["flip", "True or False"]),
        ({"flip": np.array(0.0)}, ["flip", "float64"]),
        ({"x_train": pictures(12, channels=2), "x_test": pictures(6, channels=2)}, ["2×4×4", "1 or 3 channels"]),
        ({"x_train": pictures(12, channels=4), "x_test": pictures(6, channels=4)}, ["4×4×4", "1 or 3 channels"]),
        ({"x_train": pictures(12)[:, :3], "x_test": pictures(6)[:, :3]}, ["3×3×4", "square"]),
        ({"y_train": np.arange(12) % 3 - 1}, ["y_train", "from -1 to 1"]),
        ({"y_train": np.full(12, 2**63, np.uint64)}, ["y_train"]),
        ({"y_train": np.arange(12) * 100}, ["1100", "0..K-1"]),
        ({"y_train": (np.arange(12) % 3) * 1.0}, ["float64", "whole numbers"]),
        ({"y_train": np.arange(12)[:, None] % 3}, ["(12, 1)"]),
        ({"y_train": np.arange(12) % 2 * 2}, ["class 1", "no labelled training image"]),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, ["one class only"]),
        ({"y_test": np.arange(6)}, ["test split", "label 3", "0..2"]),
        ({"class_names": np.array(["a", "b"])}, ["train split", "label 2", "0..1"]),
        ({"class_names": np.array(["a", "b", "c", "d"])}, ["class 3 (d)"]),
        ({"x_test": np.zeros((0, 4, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, ["x_test"]),
        ({"class_names": np.array([{}], object)}, ["plain arrays"]),
    ],
)
def test_npz_refusals(root, changes, words):
    write(root / "mine.npz", **changes)
    refused("npz:mine.npz", root, *words)
    assert not any((root / "cache").glob("npz-*")) and not any((root / "cache").glob("*.partial"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "single array", "bit flip"])
def test_damaged_npz(root, damage):
    path = write(root / "mine.npz")
    whole = path.read_bytes()
    if damage == "single array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        flipped = bytearray(whole)
        flipped[len(whole) // 4] ^= 1  # inside x_train
        path.write_bytes(
            {"truncated": whole[:-200], "empty": b"", "text": b"hello", "bit flip": bytes(flipped)}[damage]
        )
    refused("npz:mine.npz", root, "mine.npz")


@pytest.mark.slow
def test_letters_look_like_digits(root):
    letters, digits = data.load("letters", root), data.load("digits", root)
    outline = data.outline("letters", root / "elsewhere")
    assert outline is not None and outline.shape == letters.shape == digits.shape
    assert (len(outline.train_labels), len(outline.test_labels)) == (
        len(letters.train_labels),
        len(letters.test_labels),
    )
    assert (
        np.bincount(letters.train_labels).tolist() == [96] * 26
        and np.bincount(letters.test_labels).tolist() == [12] * 26
    )
    assert set(np.unique(letters.train_images)) == set(np.unique(digits.train_images)), "17 grey values"
    assert abs(letters.train_images.mean() - digits.train_images.mean()) < 20
    means = [letters.train_images[letters.train_labels == label].mean(0) for label in range(26)]
    nearest = [np.argmin([np.square(image - mean).sum() for mean in means]) for image in letters.test_images]
    assert np.mean(np.array(nearest) == letters.test_labels) > 0.8, "letters can be told apart"


def test_names_that_do_not_exist(root):
    refused(
        "cifar11",
        root,
        "cifar11",
        "digits, digits_vectors, letters, cifar10, cifar100, stl10, webvision, webvision_mini, food101n, npz:PATH, ",
    )
    refused("digits:x", root, "digits:x")
    refused("npz", root, "npz:PATH")
    refused("npz:", root, "''")
    refused("npz:nothing.npz", root, "nothing.npz", str(root))
    refused("npz:.", root, "not a file")
    built_in = ["digits", "digits_vectors", "letters", "cifar10", "cifar100", "stl10"]
    built_in += ["webvision", "webvision_mini", "food101n"]
    assert data.names() == [*built_in, "npz:PATH", "features:PATH", "folder:PATH"]


# ---- image folders


def picture(path, width, height, colour, mode="RGB", **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), colour).save(path, **settings)


@pytest.fixture
def folder(root):
    for split, count in (("train", 3), ("test", 2)):
        for k, (name, colour) in enumerate([("cat", (250, 0, 0)), ("ant", (0, 250, 0))]):
            for i in range(count):
                picture(root / "pets" / split / name / f"{i}.png", 20 + 4 * i + k, 30, colour)
    return root / "pets"


def test_folder(root, folder):
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"the system's own")
    pets = data.load("folder:pets", root)
    assert pets.class_names == ("ant", "cat") and pets.flip
    assert pets.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and pets.test_labels.tolist() == [0, 0, 1, 1]
    shorter = [20, 24, 28, 21, 25, 29, 20, 24, 21, 25]
    assert pets.train_images.shape == (6, 3, int(np.median(shorter)), int(np.median(shorter)))
    assert (pets.train_images[:3] == np.array([0, 250, 0], np.uint8)[:, None, None]).all()
    assert (pets.test_images[2:] == np.array([250, 0, 0], np.uint8)[:, None, None]).all()


def test_folder_size_is_a_choice_and_at_most_96_by_default(root, folder):
    assert data.load("folder:pets?size=8", root).test_images.shape == (4, 3, 8, 8)
    assert data.load("folder:pets?size=9", root).test_images.shape == (4, 3, 9, 9)  # a cache of its own
    for path in folder.glob("*/*/*.png"):
        picture(path, 120, 130, (1, 2, 3))
    (folder / "train" / "ant" / "0.png").unlink()
    picture(folder / "train" / "ant" / "0.png", 120, 130, (1, 2, 9))
    assert data.load("folder:pets", root).test_images.shape == (4, 3, 96, 96)
    for wrong in ("size=0", "size=x", "size=-3", "sise=8", ""):
        refused(f"folder:pets?{wrong}", root, "folder:pets?size=64")


def test_folder_keeps_the_middle_and_turns_images_upright(root, folder):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:16], pixels[:, 16:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    Image.fromarray(pixels).save(folder / "train" / "ant" / "0.png")
    upright = Image.new("RGB", (8, 8))
    upright.paste((255, 255, 255), (0, 0, 8, 4))  # upper half white
    turned = Image.Exif()
    turned[0x0112] = 3  # stored upside down
    upright.rotate(180).save(folder / "train" / "ant" / "1.png", exif=turned)
    pets = data.load("folder:pets?size=8", root)
    assert pets.train_images[0, 1].min() == 200 and pets.train_images[0, 0].max() == 0
    assert (pets.train_images[1, 0, :4] == 255).all() and (pets.train_images[1, 0, 4:] == 0).all()


def test_folder_of_grey_images_has_one_channel(root):
    for split in ("train", "test"):
        for name, grey in (("a", 10), ("b", 200)):
            picture(root / "grey" / split / name / "0.png", 8, 8, grey, mode="L")
    grey = data.load("folder:grey", root)
    assert grey.train_images.shape == (2, 1, 8, 8) and grey.train_images[:, 0, 0, 0].tolist() == [10, 200]


def test_folder_is_read_again_when_an_image_changes(root, folder):
    before = data.load("folder:pets?size=8", root)
    assert data.load("folder:pets?size=8", root).checksum == before.checksum
    picture(folder / "train" / "ant" / "9.png", 8, 8, (9, 9, 9))
    assert len(data.load("folder:pets?size=8", root).train_labels) == 7


def test_folder_refusals(root, folder):
    def broken(path, content):
        path.write_bytes(content)
        refused("folder:pets", root, str(path))
        path.unlink()

    jpeg = io.BytesIO()
    Image.fromarray(pictures(1, size=64)[0]).save(jpeg, "jpeg")
    broken(folder / "train" / "ant" / "cut.jpg", jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    broken(folder / "test" / "ant" / "note.txt", b"not an image")
    broken(folder / "test" / "ant" / "empty.png", b"")
    png = io.BytesIO()
    Image.fromarray(pictures(1, size=64)[0]).save(png, "png")
    broken(folder / "test" / "ant" / "cut.png", png.getvalue()[:200])

    deep = folder / "train" / "ant" / "deep.png"
    Image.fromarray(np.full((30, 30), 40_000, np.uint16)).save(deep)
    refused("folder:pets", root, "deep.png", "8 bits")  # Pillow would make it all white
    deep.unlink()

    picture(folder / "test" / "dog" / "0.png", 20, 20, (1, 2, 3))
    refused("folder:pets", root, "dog", str(folder / "train"))
    (folder / "train" / "dog").mkdir()
    refused("folder:pets", root, str(folder / "train" / "dog"), "no image")
    shutil.rmtree(folder / "test")
    refused("folder:pets", root, str(folder / "test"), "is missing")
    refused("folder:pest", root, "pest")


# ---- cache


@pytest.fixture
def mine(root):
    write(root / "mine.npz")
    dataset = data.load("npz:mine.npz", root)
    (place,) = (root / "cache").glob("npz-*")
    return dataset, place


def test_cache_is_used_while_its_source_stays_the_same(root, mine, monkeypatch):
    def explode(path):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("lnl.data.npz.read", explode)
        assert same(data.load("npz:mine.npz", root), mine[0])
    time.sleep(0.01)
    write(root / "mine.npz", y_train=(np.arange(12) + 1) % 3)
    again = data.load("npz:mine.npz", root)
    assert again.train_labels[0] == 1 and again.checksum != mine[0].checksum


def test_checksum_is_of_the_contents_not_of_the_path(root, mine):
    write(root / "other.npz", **arrays())
    assert data.load("npz:other.npz", root).checksum == mine[0].checksum


def test_a_cifar_npz_that_comes_or_goes_is_noticed(root, server, monkeypatch):
    serve_cifar("cifar10", server, monkeypatch)
    downloaded = data.load("cifar10", root)
    x = pictures(10, size=32)
    path = write(root / "cifar10.npz", x_train=x, y_train=np.arange(10), x_test=x, y_test=np.arange(10))
    assert len(data.load("cifar10", root).train_labels) == 10
    path.unlink()
    assert same(data.load("cifar10", root), downloaded)


@pytest.mark.parametrize(
    "damage",
    ["truncated", "longer", "header", "label", "missing", "json", "json keys", "json list", "format", "empty folder"],
)
def test_damaged_cache_is_rebuilt_and_reported(root, mine, damage, caplog):
    before, place = mine
    copy = {key: np.array(getattr(before, key)) for key in ARRAYS}
    images, labels, facts = place / "train_images.npy", place / "train_labels.npy", place / "dataset.json"
    if damage == "truncated":
        os.truncate(images, images.stat().st_size - 1)
    elif damage == "longer":
        images.write_bytes(images.read_bytes() + b"x")
    elif damage == "header":
        images.write_bytes(images.read_bytes().replace(b"(12, 3, 4, 4)", b"(12, 4, 3, 4)"))
    elif damage == "label":
        content = bytearray(labels.read_bytes())
        content[-8] ^= 1
        labels.write_bytes(content)
    elif damage == "missing":
        images.unlink()
    elif damage == "empty folder":
        shutil.rmtree(place)
        place.mkdir()
    else:
        kept = json.loads(facts.read_text(encoding="utf-8"))
        changed = {"json": "{", "json keys": "{}", "json list": "[1]", "format": json.dumps(kept | {"format": 0})}
        facts.write_text(changed[damage], encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        after = data.load("npz:mine.npz", root)
    assert "is rebuilt" in caplog.text and len(caplog.records) == 1
    assert after.checksum == before.checksum
    assert all(np.array_equal(getattr(after, key), copy[key]) for key in ARRAYS)


def test_full_disk_is_one_sentence_and_leaves_nothing(root, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused("digits", root, "No space left on device", "LNL_DATA")
    assert [path.name for path in (root / "cache").iterdir()] == [".digits.lock"]
    assert len(data.load("digits", root).train_labels) == 1437


def test_root_that_cannot_be_written(root):
    (root / "file").write_text("", encoding="utf-8")
    refused("digits", root / "file", "Not a directory", "LNL_DATA")


def test_interrupted_build_leaves_no_trace_for_the_next(root, monkeypatch):
    write(root / "mine.npz")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "remarks_on", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.load("npz:mine.npz", root)
    assert not any((root / "cache").glob("*npz-*.partial"))
    assert len(data.load("npz:mine.npz", root).train_labels) == 12


WORKER = """
import os, sys, time
from pathlib import Path
from lnl import data
from lnl.data import cache

real = cache.remarks_on
def slow(*read):  # called in the middle of a build
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[3]))
    return real(*read)
cache.remarks_on = slow
print(data.load("npz:mine.npz", Path(sys.argv[1])).checksum)
"""


def worker(root, log, seconds):
    command = [sys.executable, "-c", WORKER, str(root), str(log), str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8")


@pytest.mark.slow
def test_of_many_processes_one_prepares_and_all_agree(root, tmp_path):
    write(root / "mine.npz")
    workers = [worker(root, tmp_path / "log", 0.5) for _ in range(4)]
    checksums = {process.communicate(timeout=60)[0] for process in workers}
    assert [process.returncode for process in workers] == [0] * 4
    assert len(checksums) == 1 and checksums.pop().strip() == data.load("npz:mine.npz", root).checksum
    assert len((tmp_path / "log").read_text(encoding="utf-8").split()) == 1


def test_after_the_death_of_the_process_that_prepares_the_next_one_does_it(root, tmp_path):
    write(root / "mine.npz")
    with worker(root, tmp_path / "first", 600) as first:
        deadline = time.monotonic() + 30
        while not (tmp_path / "first").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with worker(root, tmp_path / "second", 0) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=1)  # it waits for the first
            assert list((root / "cache").glob(".npz-*.partial"))
            first.kill()
            assert second.communicate(timeout=60)[0].strip() == data.load("npz:mine.npz", root).checksum
    assert (tmp_path / "second").exists() and not list((root / "cache").glob(".npz-*.partial"))


# ---- downloads


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An HTTP server on this machine; yields its folder and address."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def pack(path, base, files):
    """Writes base/<name> for each file into a .tar.gz; returns its content."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{base}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def serve_cifar(kind, server, monkeypatch):
    """A small archive in the format of CIFAR's python version, and torchvision pointed at it."""
    folder, address = server
    classes = {"cifar10": 10, "cifar100": 100}[kind]
    reference = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[kind]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[kind]
    names = [name for name, _ in reference.train_list + reference.test_list]
    files, expected = {}, {}
    for seed, name in enumerate(names):
        images = np.random.default_rng(seed).integers(0, 256, (classes, 3, 32, 32), dtype=np.uint8)
        labels = np.random.default_rng(seed).permutation(classes)
        files[name] = pickle.dumps({"data": images.reshape(classes, 3072), key: labels.tolist()})
        expected[name] = images, labels
    meta = reference.meta["filename"]
    files[meta] = pickle.dumps({reference.meta["key"]: [str(k) for k in range(classes)]})
    content = pack(folder / reference.filename, reference.base_folder, files)
    monkeypatch.setattr(reference, "url", f"{address}/{reference.filename}")
    monkeypatch.setattr(reference, "tgz_md5", md5(content))
    monkeypatch.setattr(reference, "train_list", [[name, md5(files[name])] for name, _ in reference.train_list])
    monkeypatch.setattr(reference, "test_list", [[name, md5(files[name])] for name, _ in reference.test_list])
    monkeypatch.setattr(reference, "meta", reference.meta | {"md5": md5(files[meta])})
    return folder / reference.filename, [expected[name] for name in names]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_in_its_own_order(kind, root, server, monkeypatch):
    archive, expected = serve_cifar(kind, server, monkeypatch)
    cifar = data.load(kind, root)
    assert np.array_equal(cifar.train_images, np.concatenate([images for images, _ in expected[:-1]]))
    assert np.array_equal(cifar.train_labels, np.concatenate([labels for _, labels in expected[:-1]]))
    assert np.array_equal(cifar.test_images, expected[-1][0]) and np.array_equal(cifar.test_labels, expected[-1][1])
    assert cifar.class_names[1] == {"cifar10": "automobile", "cifar100": "aquarium_fish"}[kind]
    assert socket.getdefaulttimeout() is None
    archive.unlink()
    shutil.rmtree(root / "cache")
    assert same(data.load(kind, root), cifar)  # from the downloaded files, without a network
    for path in root.glob("cifar-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert same(data.load(kind, root), cifar)  # from the cache alone


def test_truncated_download_is_one_sentence_and_the_next_try_works(root, server, monkeypatch):
    archive, _ = serve_cifar("cifar10", server, monkeypatch)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    refused("cifar10", root, "corrupted", "cifar-10-python.tar.gz", str(root), "digits")
    archive.write_bytes(whole)
    assert len(data.load("cifar10", root).train_labels) == 50


def test_connection_that_breaks_off(root, server, monkeypatch):
    serve_cifar("cifar10", server, monkeypatch)

    def half(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    monkeypatch.setattr(Handler, "do_GET", half)
    refused("cifar10", root, "could not be fetched", "digits")


def test_absent_file_on_the_server_and_no_server(root, server, monkeypatch):
    archive, _ = serve_cifar("cifar100", server, monkeypatch)
    archive.unlink()
    refused("cifar100", root, "File not found", "cifar-100-python.tar.gz (from http", "or cifar100.npz", "digits")
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    refused("cifar100", root, "Connection refused", "cifar-100-python.tar.gz (from http", "or cifar100.npz", "digits")


def test_server_that_never_answers(root, server, monkeypatch):
    serve_cifar("cifar10", server, monkeypatch)
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
        start = time.monotonic()
        refused("cifar10", root, "timed out")
        assert time.monotonic() - start < 5


def test_stl10_is_downloaded_with_its_unlabelled_part(root, server, monkeypatch):
    folder, address = server
    stl = torchvision.datasets.STL10
    draw = np.random.default_rng(0)
    images = {
        part: draw.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        for part, n in (("train", 20), ("unlabeled", 3), ("test", 10))
    }
    labels = {"train": draw.permutation(20) % 10 + 1, "test": draw.permutation(10) + 1}
    files = {f"{part}_X.bin": image.transpose(0, 1, 3, 2).tobytes() for part, image in images.items()}  # columns first
    files |= {f"{part}_y.bin": label.astype(np.uint8).tobytes() for part, label in labels.items()}
    content = pack(folder / stl.filename, stl.base_folder, files)
    monkeypatch.setattr(stl, "url", f"{address}/{stl.filename}")
    monkeypatch.setattr(stl, "tgz_md5", md5(content))
    monkeypatch.setattr(stl, "train_list", [[name, md5(files[name])] for name, _ in stl.train_list])
    monkeypatch.setattr(stl, "test_list", [[name, md5(files[name])] for name, _ in stl.test_list])
    got = data.load("stl10", root)
    assert np.array_equal(got.train_images, np.concatenate([images["train"], images["unlabeled"]]))
    assert got.train_labels.tolist() == [*(labels["train"] - 1).tolist(), -1, -1, -1]
    assert np.array_equal(got.test_images, images["test"]) and np.array_equal(got.test_labels, labels["test"] - 1)
    (folder / stl.filename).write_bytes(content[:-50])
    shutil.rmtree(root)
    refused("stl10", root, "corrupted", "stl10_binary.tar.gz", "or stl10.npz")


# ---- human labels


def cifar_with(labels, name="cifar10", classes=10):
    nothing = np.zeros((len(labels), 3, 1, 1), np.uint8)
    names = tuple(str(k) for k in range(classes))
    return Dataset(
        name, nothing, np.asarray(labels), nothing, np.asarray(labels), names, (0.5,) * 3, (0.5,) * 3, True, ""
    )


PUBLISHED = ("clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
KINDS = ("aggre", "worse", "random1", "random2", "random3")


def published(path, labels, **changes):
    """A file as Wei et al. publish it: a dict of int64 arrays, saved by torch."""
    columns = {key: (labels + shift) % 10 for shift, key in enumerate(PUBLISHED)} | changes
    torch.save(columns, path)
    return path


def test_human_labels_from_the_published_file_and_from_npz(root):
    labels = np.random.default_rng(0).integers(0, 10, 200)
    published(root / "CIFAR-10_human.pt", labels)
    for shift, kind in enumerate(KINDS, start=1):
        got = data.given_labels(cifar_with(labels), kind, root)
        assert np.array_equal(got, (labels + shift) % 10) and got.dtype == np.int64
    (root / "CIFAR-10_human.pt").unlink()
    np.savez(root / "cifar10n.npz", clean=labels.astype(np.uint8), worse=(labels.astype(np.uint8) + 1) % 10)
    got = data.given_labels(cifar_with(labels), "worse", root)
    assert np.array_equal(got, (labels + 1) % 10) and got.dtype == np.int64


def test_human_labels_of_cifar100(root):
    labels = np.random.default_rng(0).integers(0, 100, 200)
    torch.save(
        {"clean_label": labels, "noisy_label": (labels + 1) % 100, "clean_coarse_label": labels // 5},
        root / "CIFAR-100_human.pt",
    )
    cifar = cifar_with(labels, "cifar100", 100)
    assert np.array_equal(data.given_labels(cifar, "fine", root), (labels + 1) % 100)
    assert np.array_equal(data.given_labels(cifar, "", root), (labels + 1) % 100), "the only column"
    (root / "CIFAR-100_human.pt").unlink()
    np.savez(root / "cifar100n.npz", clean=labels, fine=(labels + 2) % 100)
    assert np.array_equal(data.given_labels(cifar, "fine", root), (labels + 2) % 100)


def test_human_labels_written_under_numpy_1(root):
    """numpy 1 pickles its arrays under the name numpy.core, numpy 2 under numpy._core."""
    labels = np.arange(50) % 10
    path = published(root / "CIFAR-10_human.pt", labels)
    old = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert old.getvalue() != path.read_bytes()
    path.write_bytes(old.getvalue())
    assert b"numpy._core" not in path.read_bytes()
    assert np.array_equal(data.given_labels(cifar_with(labels), "worse", root), (labels + 2) % 10)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_human_labels_never_execute_a_pickle(root, tmp_path):
    labels = np.arange(50) % 10
    sprung = tmp_path / "sprung"
    for file in ("CIFAR-10_human.pt", "CIFAR-10_human.pt (old format)"):
        torch.save(
            {"clean_label": labels, "worse_label": Trap(str(sprung))},
            root / "CIFAR-10_human.pt",
            _use_new_zipfile_serialization="old" not in file,
        )
        with pytest.raises(DataError) as error:
            data.given_labels(cifar_with(labels), "worse", root)
        one_sentence(error, "CIFAR-10_human.pt", "not loaded")
    (root / "CIFAR-10_human.pt").unlink()
    np.savez(root / "cifar10n.npz", clean=labels, worse=np.array([Trap(str(sprung))] * 50, object))
    with pytest.raises(DataError) as error:
        data.given_labels(cifar_with(labels), "worse", root)
    one_sentence(error, "cifar10n.npz")
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("dataset", "kind", "changes", "words"),
    [
        (cifar_with(np.roll(np.arange(50) // 5, 5)), "worse", {}, ["50 of its clean labels", "another order"]),
        (cifar_with([*np.arange(47) // 5, 1, 1, 1]), "worse", {}, ["3 of its clean labels"]),
        (cifar_with(np.arange(49) // 5), "worse", {}, ["50 labels", "49 training images"]),
        (cifar_with(np.arange(50) // 5), "worst", {}, ["worst", "aggre, random1, random2, random3, worse"]),
        (cifar_with(np.arange(50) // 5), "worse", {"worse_label": np.arange(50)}, ["worse_label", "0 to 9"]),
        (cifar_with(np.arange(50) // 5), "worse", {"worse_label": np.zeros(49, int)}, ["49 labels"]),
        (cifar_with(np.arange(50) // 5), "worse", {"worse_label": np.zeros(50)}, ["whole numbers"]),
        (
            cifar_with(np.arange(50) // 5, "digits"),
            "worse",
            {},
            ["digits has no labels that people gave", "another kind of noise"],
        ),
        (cifar_with(np.arange(50) // 5, "cifar100"), "fine", {}, ["CIFAR-100_human.pt or cifar100n.npz"]),
    ],
)
def test_human_label_refusals(root, dataset, kind, changes, words):
    published(root / "CIFAR-10_human.pt", np.arange(50) // 5, **changes)
    with pytest.raises(DataError) as error:
        data.given_labels(dataset, kind, root)
    one_sentence(error, *words)


@pytest.mark.parametrize("content", [b"", b"not a file of torch", "truncated"])
def test_damaged_given_labels(root, content):
    path = published(root / "CIFAR-10_human.pt", np.arange(50) % 10)
    path.write_bytes(path.read_bytes()[:-100] if content == "truncated" else content)
    with pytest.raises(DataError) as error:
        data.given_labels(cifar_with(np.arange(50) % 10), "worse", root)
    one_sentence(error, "CIFAR-10_human.pt")


def test_human_label_file_without_the_column(root):
    torch.save({"clean_label": np.arange(50) % 10}, root / "CIFAR-10_human.pt")
    with pytest.raises(DataError) as error:
        data.given_labels(cifar_with(np.arange(50) % 10), "worse", root)
    one_sentence(error, "worse_label")


def test_real_cifar10n():
    """The rates and first labels of CIFAR-10N (Wei et al. 2022)."""
    shared = REPOSITORY.parent / "shared" / "data"
    if not (shared / "cifar10n.npz").exists():
        pytest.skip("the real CIFAR-10N labels are not beside this repository (../shared/data/cifar10n.npz)")
    with np.load(shared / "cifar10n.npz") as file:
        cifar = cifar_with(file["clean"].astype(np.int64))
    assert cifar.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    expected = {
        "aggre": (4_505, "6 9 9 4 1 1 2 7 8 0"),
        "random1": (8_617, "6 9 9 4 1 1 2 7 8 3"),
        "random2": (9_061, "4 9 9 5 1 1 2 7 8 0"),
        "random3": (8_820, "6 9 0 4 1 9 2 4 8 8"),
        "worse": (20_104, "4 9 0 5 1 9 2 4 8 8"),
    }
    for kind, (wrong, first) in expected.items():
        labels = data.given_labels(cifar, kind, shared)
        assert (labels != cifar.train_labels).sum() == wrong
        assert " ".join(map(str, labels[:10])) == first


# ---- what changes, and what it is called


@pytest.mark.parametrize("kind", ["in place", "replaced"])
def test_a_file_with_another_content_is_seen_though_its_size_and_its_time_are_the_same(root, mine, kind):
    """As `cp -p` and `rsync -t` leave it."""
    path = root / "mine.npz"
    about, new = path.stat(), root / "new.npz"
    write(new, y_train=(np.arange(12) + 1) % 3)
    if kind == "replaced":
        new.replace(path)
    else:
        path.write_bytes(new.read_bytes())
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    again = data.load("npz:mine.npz", root)
    assert again.checksum != mine[0].checksum and again.train_labels[0] == 1


def test_a_rebuilt_cache_of_the_same_content_keeps_its_checksum(root, mine):
    path = root / "mine.npz"
    shutil.copy2(path, root / "copy.npz")
    (root / "copy.npz").replace(path)
    before = (mine[1] / "dataset.json").stat().st_ino
    assert data.load("npz:mine.npz", root).checksum == mine[0].checksum
    assert (mine[1] / "dataset.json").stat().st_ino != before, "it was built anew"


@pytest.mark.parametrize("array", ARRAYS)
def test_a_flipped_bit_in_a_cache_is_found_where_one_asks(root, mine, array, caplog):
    before, place = mine
    right = np.array(getattr(before, array))
    path = place / f"{array}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if array.endswith("images"):
        assert not np.array_equal(getattr(data.load("npz:mine.npz", root), array), right), "every start would read all"
    with caplog.at_level(logging.WARNING):
        after = data.load("npz:mine.npz", root, verify=True)
    assert np.array_equal(getattr(after, array), right) and after.checksum == before.checksum
    assert f"{array}.npy does not have its checksum" in caplog.text and str(place) in caplog.text
    caplog.clear()
    data.load("npz:mine.npz", root, verify=True)
    assert not caplog.records


def test_arrays_that_nothing_reads_are_told(root, caplog):
    write(root / "mine.npz", x_unlabeled=pictures(3), classnames=np.array({}, object))
    with caplog.at_level(logging.WARNING):
        assert len(data.load("npz:mine.npz", root).train_labels) == 12
    assert "mine.npz has x_unlabeled, classnames, which are not used" in caplog.text and "x_unlabelled" in caplog.text


def test_names_of_image_files_may_be_of_any_bytes_and_those_of_classes_are_utf_8(root, folder):
    before = data.load("folder:pets?size=8", root)
    first = sorted((folder / "train" / "ant").iterdir())[0]
    odd = first.rename(os.fsdecode(os.fsencode(first.parent) + b"/\xe9" + os.fsencode(first.name)))
    after = data.load("folder:pets?size=8", root)
    assert sorted(map(bytes, after.train_images)) == sorted(map(bytes, before.train_images))
    odd.write_bytes(b"no image")
    refused("folder:pets?size=8", root, "\\udce9", "cannot be used as an image")
    odd.unlink()
    picture(folder / "train" / os.fsdecode(b"caf\xe9") / "0.png", 8, 8, (1, 2, 3))
    refused("folder:pets?size=8", root, "the class name 'caf\\udce9' is not UTF-8")


def test_a_root_that_is_not_utf_8(tmp_path, capsys):
    root = tmp_path / os.fsdecode(b"donn\xe9es")
    root.mkdir()
    write(root / "mine.npz")
    assert len(data.load("npz:mine.npz", root).train_labels) == 12
    (root / "mine.npz").write_bytes(b"")
    refused("npz:mine.npz", root, "donn\\udce9es")


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_loader_takes_can_be_trained_on(root, tiny, size, channels):
    """Any size: networks have `resize`; tests/functional/test_augment.py has the views."""
    from lnl.trial.run import Execution, run

    write(
        root / "mine.npz",
        **{f"x_{part}": pictures(12, size, channels, seed) for seed, part in enumerate(("train", "test"))},
        y_test=np.arange(12) % 3,
    )
    trial = tiny("fixmatch", {"dataset": "npz:mine.npz", "labels": 6, "resize": 8, "epochs": 1, "steps": 1})
    assert len(list(run(trial, Execution(device="cpu", data=root)))) == 1


def test_cifar_that_is_not_square_is_refused(root):
    x = pictures(20, size=32)[:, :30]
    write(root / "cifar10.npz", x_train=x, y_train=np.arange(20) % 10, x_test=x, y_test=np.arange(20) % 10)
    refused("cifar10", root, "3×30×32", "square")
