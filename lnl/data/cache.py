"""The cache of data sets: .npy files below `<root>/cache/<key>/`, written once, memory-mapped afterwards.

Images that are read on demand are checked as all others are, but stay in their files: the cache has their names.

Of many processes that start together one prepares the files and the others wait for it.  A reader never sees half a
data set: the files are written into a hidden folder, flushed to disk, and the folder is renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np

from lnl.data.dataset import DataError, Dataset, Source, Stored, chunks
from lnl.data.files import ImageFiles
from lnl.data.inspection import Moments, PixelSums, Survey, check_labels, remarks_on
from lnl.data.progress import told
from lnl.storage.files import is_there, lock_file, open_file, read_file, reason, shown
from lnl.system import machine

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when the files' meaning changes, so that older caches are rebuilt
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")  # what the checksum is of
GIVEN = "given"  # the array of all columns of given labels, one after the other
CHANNELS = (1, 3)  # that views can handle; they and networks, with `resize`, can handle any size
TRAINABLE = "grey or RGB images (1 or 3 channels) that are square: convert them"


class ArrayRecord(TypedDict):
    """What dataset.json says of one .npy file."""

    shape: list[int]
    dtype: str
    bytes: int
    sha256: str


class FilesRecord(TypedDict):
    """What dataset.json says of the images of one split that stay in their files; their names are in a .npy file."""

    folder: str
    channels: int
    size: int


def file_stamp(*paths: Path) -> str:
    """A hash that changes when a file changes or is replaced, even by one of its size and time of modification.

    It covers the time of the last change of a file's state (ctime), which no tool sets: `cp -p`, `rsync -t` and `touch`
    set the time of modification (mtime).
    """
    total = hashlib.sha256(b"2")  # counts up where readers deliver more than before: older caches are rebuilt
    for path in paths:
        now = path.stat()
        facts = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
        total.update(b"\0".join([os.fsencode(path), *(str(fact).encode() for fact in facts), b""]))
    return total.hexdigest()[:16]


def expanded(path: str | Path, instead: str) -> Path:
    """The path with the home directory in place of `~`.  Raises `DataError` where this user has none."""
    try:
        return machine.expanded(path, instead)
    except ValueError as error:
        raise DataError(str(error)) from None


def find(path: str, root: Path, name: str) -> Path:
    """The file or folder `path`, relative to `root` first, then to the current folder."""
    given = expanded(path, "give a path without '~'")
    for candidate in (root / given, given):
        if path and is_there(candidate):
            return Path(os.path.realpath(candidate.parent), candidate.name)  # messages say the name that was given
    where = f"in {shown(root)} or in {shown(Path.cwd())}"
    raise DataError(f"{shown(name)}: there is no '{shown(path)}' {where}: correct the path.")


def cached(name: str, source: Source, root: Path, verify: bool = False) -> Dataset:
    """The data set from its cache, which is built first if it is missing, damaged or older than its source."""
    folder = root / "cache" / source.key
    try:
        return _open(folder, name, source.stamp, verify)
    except _Unusable:
        pass
    try:
        with _locked(folder.with_name(f".{source.key}.lock")):
            try:
                return _open(folder, name, source.stamp, verify)  # another process prepared it meanwhile
            except _Unusable as unusable:
                if folder.exists():
                    logger.warning("The cache of %s in %s is rebuilt: %s.", shown(name), shown(folder), unusable)
            _build(folder, name, source)
            return _open(folder, name, source.stamp)
    except OSError as error:
        raise DataError(
            f"{shown(name)}: its cache cannot be written to {shown(error.filename or folder)} ({reason(error)}): "
            "free the disk or set LNL_DATA to a folder that can be written."
        ) from error


def opened(name: str, source: Source, root: Path) -> Dataset | None:
    """The data set from its cache, None where there is no usable one."""
    try:
        return _open(root / "cache" / source.key, name, source.stamp)
    except _Unusable:
        return None


def remarks(root: Path) -> dict[str, tuple[str, ...]]:
    """What was remarked on each data set of the cache when it was read, by the data set's name."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted((root / "cache").glob("[!.]*/dataset.json")):
        try:
            facts = json.loads(read_file(path))
            name, sentences = facts.get("name", path.parent.name), tuple(map(str, facts.get("remarks", ())))
        except (OSError, ValueError, TypeError, AttributeError):  # the next reader of the data set builds it anew
            continue
        if sentences:
            found[name] = sentences
    return found


class _Unusable(Exception):
    """The cache is missing, damaged or outdated; the message is the reason."""


def _locked(path: Path) -> BinaryIO:
    """One process at a time prepares a data set; closing the file frees the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return lock_file(path, lambda: logger.info("Another process prepares the data set; waiting for %s.", shown(path)))


def _open(folder: Path, name: str, stamp: str, verify: bool = False) -> Dataset:
    """Open a cache.  Checked are sizes, headers and the labels' checksums; with `verify` the images', in seconds.

    Raises `_Unusable`.
    """
    try:
        facts = json.loads(read_file(folder / "dataset.json"))
        if facts["format"] != FORMAT:
            raise ValueError("it was written by another version")
        if facts["stamp"] != stamp:
            raise ValueError("the files it was made from have changed")
        on_demand = {key: _open_files(folder, key, record) for key, record in facts.get("files", {}).items()}
        arrays = {
            key: _open_array(folder / f"{key}.npy", expected, verify)
            for key, expected in facts["arrays"].items()
            if key not in on_demand
        }
        columns = facts.get("given", [])
        given = np.split(arrays.pop(GIVEN), len(columns)) if columns else []
        of_data: dict[str, Any] = {**arrays, **on_demand}
        return Dataset(
            name=name,
            **of_data,
            class_names=tuple(facts["class_names"]),
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            flip=facts["flip"],
            checksum=facts["checksum"],
            train_files=_names(facts.get("train_files")),
            test_files=_names(facts.get("test_files")),
            given=dict(zip(columns, given, strict=True)),
            remarks=tuple(facts.get("remarks", ())),
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise _Unusable(str(error)) from error


def _images(folder: Path, images_stamp: str) -> dict[str, np.ndarray] | None:
    """The images of each split as an earlier cache has them, where they come from the same files and are undamaged."""
    try:
        facts = json.loads(read_file(folder / "dataset.json"))
        if not images_stamp or (facts["format"], facts["images_stamp"]) != (FORMAT, images_stamp):
            return None
        return {
            split: _open_array(folder / f"{split}_images.npy", facts["arrays"][f"{split}_images"], verify=True)
            for split in ("train", "test")
        }
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None


def _names(listed: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if listed is None else tuple(listed)


def _open_array(path: Path, expected: ArrayRecord, verify: bool) -> np.ndarray:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != expected["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {expected['bytes']}")
    images = expected["dtype"] != "int64"
    array = np.load(path, mmap_mode="r" if images else None, allow_pickle=False)
    if list(array.shape) != expected["shape"] or array.dtype != expected["dtype"]:
        raise ValueError(f"{path.name} is {array.dtype}{array.shape} instead of {expected['dtype']}{expected['shape']}")
    if (verify or not images) and hashlib.sha256(array.data).hexdigest() != expected["sha256"]:
        raise ValueError(f"{path.name} does not have its checksum")
    return array


def _open_files(folder: Path, key: str, record: FilesRecord) -> ImageFiles:
    """The images of one split that stay in their files."""
    names = np.load(folder / f"{key}_names.npy", allow_pickle=False)
    return ImageFiles(record["folder"], names, record["channels"], record["size"])


def _build(folder: Path, name: str, source: Source) -> None:
    """Read the source and write the cache, complete or not at all.  Raises `DataError`."""
    contents = source.read()
    check_labels(name, contents)
    former = _images(folder, source.images_stamp)
    partial = folder.with_name(f".{folder.name}.partial")  # one name for all: only the holder of the lock writes here
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        arrays: dict[str, ArrayRecord] = {}
        files: dict[str, FilesRecord] = {}
        surveys = {"train": Survey(), "test": Survey()}
        for split, part in (("train", contents.train), ("test", contents.test)):
            what = f"{name}: the {split} split"
            key = f"{split}_images"
            if part.on_demand is not None:
                files[key] = _write_names(partial, key, part.on_demand)
            images = part.images if former is None else chunks(former[split])
            images = told(images, len(part.labels), f"{shown(name)}: images of the {split} split that are read")
            path = partial / f"{key}.npy" if part.on_demand is None else None
            arrays[key] = _write(path, surveys[split].of(images), len(part.labels), None, what)
            arrays[f"{split}_labels"] = _write(
                partial / f"{split}_labels.npy", [part.labels], len(part.labels), np.int64, what
            )
        train, test = arrays["train_images"]["shape"], arrays["test_images"]["shape"]
        if train[1:] != test[1:]:
            raise DataError(
                f"{name}: training images are {_size(train)}, but test images are {_size(test)}: make them equal."
            )
        mean, std = contents.mean, contents.std
        if mean is None or std is None:
            vectors = np.load(partial / "train_images.npy", mmap_mode="r") if len(train) == 2 else None
            pixels = surveys["train"].pixels  # asked by its class, which the hash of the code follows
            mean, std = PixelSums.moments(pixels) if vectors is None else _moments_of_vectors(vectors)
        if len(mean) != train[1]:
            raise DataError(f"{name}: images must have {len(mean)} channels, but these have {train[1]}: convert them.")
        remarks = [*contents.remarks, *remarks_on(contents, surveys["train"], surveys["test"])]
        if remarks:
            logger.warning("%s: %s", shown(name), " ".join(remarks))
        facts = {
            "format": FORMAT,
            "name": name,
            "stamp": source.stamp,
            "images_stamp": source.images_stamp,
            "class_names": contents.class_names,
            "mean": mean,
            "std": std,
            "flip": contents.flip,
            "checksum": checksum(arrays),
            "train_files": contents.train.files,
            "test_files": contents.test.files,
            "given": list(contents.given),
            "remarks": remarks,
            "arrays": arrays,
            "files": files,
        }
        if contents.given:  # not in the checksum, because each column has its own
            total = sum(map(len, contents.given.values()))
            arrays[GIVEN] = _write(partial / f"{GIVEN}.npy", contents.given.values(), total, np.int64, name)
        with (partial / "dataset.json").open("w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)  # processes that have it mapped keep what they see
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_names(folder: Path, key: str, images: ImageFiles) -> FilesRecord:
    np.save(folder / f"{key}_names.npy", images.names)
    return {"folder": images.folder, "channels": images.channels, "size": images.size}


def _write(path: Path | None, parts: Iterable[np.ndarray], count: int, dtype: type | None, what: str) -> ArrayRecord:
    """Stream contiguous parts into one .npy file of `count` rows; returns its shape, type, size and checksum.

    `path` None: no file is written.  `dtype` None: images or vectors, whose type is that of the first part.
    """
    total, rows, shape = hashlib.sha256(), 0, (count,)
    with (path or Path(os.devnull)).open("wb") as file:
        for part in parts:
            if rows == 0:
                shape = (count, *part.shape[1:])
                if len(shape) == 4 and (shape[1] not in CHANNELS or shape[2] != shape[3]):
                    raise DataError(f"{what} has images {_size(list(shape))}, but training takes {TRAINABLE}.")
                dtype = dtype or (np.float32 if len(shape) == 2 else np.uint8)
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
            if part.dtype != dtype or part.shape[1:] != shape[1:]:
                raise DataError(
                    f"{what} has {part.dtype}{part.shape[1:]} among its {np.dtype(dtype)}{shape[1:]} arrays."
                )
            rows += len(part)
            total.update(part.data)
            file.write(part.data)
        if rows != count:
            raise DataError(f"{what} has {rows} images but {count} labels: give every image one label.")
        file.flush()
        size = file.tell()
        if path:
            os.fsync(file.fileno())
    return {"shape": list(shape), "dtype": np.dtype(dtype).name, "bytes": size, "sha256": total.hexdigest()}


def checksum(arrays: Mapping[str, ArrayRecord]) -> str:
    """One checksum over the types, shapes and contents of all arrays."""
    described = "".join(f"{key}{array['dtype']}{array['shape']}{array['sha256']}" for key, array in arrays.items())
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _size(shape: Sequence[int]) -> str:
    """The shape of one image in words: C×H×W."""
    return "×".join(map(str, shape[1:]))


def moments(images: Stored) -> Moments:
    """Mean and standard deviation per channel of pixels in [0, 1]: (N, C, H, W) uint8 -> two (C,).

    Of vectors (N, D) float32 those of each feature, two (D,).  A channel or feature of one value only has deviation 1:
    centred it is 0 whatever it is divided by.
    """
    if isinstance(images, np.ndarray) and images.ndim == 2:
        return _moments_of_vectors(images)
    pixels = PixelSums()
    for part in chunks(images):
        pixels.add(part)
    return pixels.moments()


def _moments_of_vectors(vectors: np.ndarray) -> Moments:
    """Mean and standard deviation per feature: (N, D) float32 -> two (D,), computed in float64."""
    mean = sum(part.sum(0, dtype=np.float64) for part in chunks(vectors)) / len(vectors)
    squares = sum(np.square(part - mean).sum(0) for part in chunks(vectors))  # of differences: nothing cancels
    std = np.sqrt(squares / len(vectors))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1).tolist())
