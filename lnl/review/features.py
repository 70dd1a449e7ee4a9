"""Features of a user's images: from a file, by a pre-trained network, or by SimCLR trained here for a short while.

They are kept in the output folder, as `features.npy` beside `features.json`, which says what they were made of and
which images could not be read.  The same content is not computed twice, and an interrupted computation goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from lnl import data, methods, networks
from lnl.data import DataError, Dataset
from lnl.data.cache import expanded, moments
from lnl.data.dataset import chunks
from lnl.data.inspection import Survey
from lnl.methods import simclr
from lnl.review import pixels
from lnl.review.images import ImageSet
from lnl.review.pixels import Form
from lnl.storage import checkpoints
from lnl.storage.atomic import write_atomically
from lnl.storage.files import read_file, reason, shown
from lnl.storage.places import canonical, short_hash
from lnl.training import views
from lnl.training.learner import NetworkBuilder, trained_backbone
from lnl.training.state import stateful_parts
from lnl.training.streams import Streams
from lnl.training.task import Task
from lnl.trial import embedding
from lnl.trial.embedding import Embedder

LARGEST, LARGEST_TO_TRAIN = 96, 32  # pixels per side: of what a network sees, of what SimCLR is trained on
MOST_TO_TRAIN = 20_000  # images that SimCLR is trained on, at random
STEPS = 300  # of SimCLR: two minutes of one CPU on colour images of 32 × 32 pixels
BETTER = (
    "These features are of a small network that was trained here for a short while, without labels.  Better features "
    "help more than anything else: give --network and --weights of a pre-trained one, or --features FILE."
)
Tell = Callable[[str, int, int], None]  # what is done (reading, training, embedding), so many, of how many


@dataclass(frozen=True, eq=False)
class Features:
    """Of the images that could be read."""

    values: np.ndarray  # (R, D) float32, perhaps memory-mapped, to be copied on writing: torch takes no others
    words: str  # where they come from
    readable: np.ndarray  # (R,) int64: where the images stand among all
    unreadable: Mapping[int, str]  # where others stand, and what is wrong, a sentence
    copies: np.ndarray  # (M, 2) int64: rows of an image and of the first one that is equal to it
    remark: str | None = None  # a sentence for the user


@dataclass(frozen=True)
class Choice:
    """How the user wants features to be made."""

    files: tuple[str, ...] = ()  # of features
    network: str | None = None
    weights: str | None = None
    trial: str | None = None  # RESULTS/ID, whose trained network is taken
    resize: int | None = None  # pixels per side that the network sees
    steps: int = STEPS  # of SimCLR, where nothing else is named
    device: str = "auto"
    seed: int = 0


def features_of(images: ImageSet, choice: Choice, out: Path, root: Path | None, tell: Tell) -> Features:
    """The features of all images that can be read.  Raises `DataError`, and `ValueError` for an impossible choice."""
    if choice.files:
        return _from_files(images, choice.files, out, root)
    if images.are_vectors:
        assert images.stored is not None
        return _given(images, images.stored, "the data set itself")
    return _Making(images, choice, out, tell).features()


# --------------------------------------------------------------------------------------------------------- from a file


def _from_files(images: ImageSet, files: Sequence[str], out: Path, root: Path | None) -> Features:
    if len(files) == 1 and (earlier := _of_earlier(images, Path(files[0]))):
        return earlier
    arrays = [_file(images, file, root) for file in files]
    values = arrays[0] if len(arrays) == 1 else _side_by_side(arrays, out / ".joined.npy")
    return _given(images, values, " and ".join(Path(file).name for file in files))


def _of_earlier(images: ImageSet, path: Path) -> Features | None:
    """The features of an earlier job on the same images, of which some could not be read; None where they are none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = _Note.read(path.with_name("features.json"))
        if path.name == "features.npy" and note.stamp == images.stamp:
            return note.features(path, len(images.files), f"{path.parent.name}/{path.name}")
    return None


def _given(images: ImageSet, values: np.ndarray, words: str) -> Features:
    if isinstance(values, np.memmap) and values.mode == "r":
        values = np.memmap(str(values.filename), values.dtype, "c", values.offset, values.shape)
    return Features(values, words, np.arange(len(images.files)), {}, _copies(values))


def _copies(images: np.ndarray) -> np.ndarray:
    """Images (N, …), or vectors, that are equal to an earlier one, and the first of these: (M, 2)."""
    survey = Survey()
    for _ in survey.of(chunks(images)):
        pass
    _, first, group = np.unique(survey.hashes, return_index=True, return_inverse=True)
    original = first[group]
    later = np.flatnonzero(original != np.arange(len(original)))
    return np.stack([later, original[later]], 1)


def _file(images: ImageSet, file: str, root: Path | None) -> np.ndarray:
    """The features of all images (N, D) float32 in a .npy file, or in a .npz file as `lnl embed` writes it."""
    path = expanded(file, "give a path without '~'")
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"{shown(path)} is no file of features: give a .npy array (N, D), or a .npz of `lnl embed`.")
    if path.suffix == ".npy":
        array, names = _plain(path), None
    else:
        dataset = data.load(f"features:{file}", root)
        array, names = np.asarray(dataset.train_images), dataset.train_files
    count = len(images.files)
    if names and len(set(names)) == len(names) and names != images.files:
        places = {name: place for place, name in enumerate(names)}
        if missing := [name for name in images.files if name not in places]:
            raise DataError(
                f"{shown(path)} has no features of {missing[0]} (images without: {len(missing):,}): make them of all "
                "images."
            )
        return array[[places[name] for name in images.files]]
    if len(array) != count:
        raise DataError(
            f"{shown(path)} has {len(array):,} rows, but there are {count:,} images: give one row for each, in the "
            "order of their names."
        )
    return array


def _plain(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{shown(path)} cannot be read ({reason(error)}): write it anew with numpy.save.") from error
    if array.dtype.kind != "f" or array.ndim != 2 or not array.size:
        raise DataError(f"{shown(path)} is {array.dtype}{array.shape}, but must be floating point of shape (N, D).")
    row = 0
    for part in chunks(array):
        if not (finite := np.isfinite(part).all(1)).all():
            raise DataError(
                f"{shown(path)}: row {row + int(finite.argmin())} has entries that are no finite numbers: make it anew "
                "or remove the image."
            )
        row += len(part)
    return array.astype(np.float32, copy=False)


def _side_by_side(arrays: Sequence[np.ndarray], path: Path) -> np.ndarray:
    """Several sets of features as one, memory-mapped; each is scaled so that its vectors have length 1 on average."""
    lengths = [np.sqrt(np.mean([np.square(part).sum(1).mean() for part in chunks(array)])) or 1.0 for array in arrays]
    columns = sum(array.shape[1] for array in arrays)
    joined: np.memmap = open_memmap(path, "w+", np.float32, (len(arrays[0]), columns))
    row = 0
    for parts in zip(*(chunks(array) for array in arrays), strict=True):
        joined[row : row + len(parts[0])] = np.hstack(
            [part / length for part, length in zip(parts, lengths, strict=True)]
        )
        row += len(parts[0])
    joined.flush()
    return np.load(path, mmap_mode="c")


# --------------------------------------------------------------------------------------------------------- by a network


@dataclass(frozen=True, eq=False)
class _Note:
    """What stands beside features: `features.json`."""

    key: str  # of what they were made of
    stamp: str  # of the images
    unreadable: Mapping[int, str]  # as in `Features`
    copies: np.ndarray  # likewise

    @classmethod
    def read(cls, path: Path) -> _Note:
        note = json.loads(read_file(path))
        unreadable = {int(position): str(why) for position, why in note["unreadable"].items()}
        copies = np.array(note["copies"], np.int64).reshape(-1, 2)
        return cls(str(note["key"]), str(note["stamp"]), unreadable, copies)

    def write(self, path: Path) -> None:
        content = {"key": self.key, "stamp": self.stamp, "unreadable": self.unreadable, "copies": self.copies.tolist()}
        path.write_text(json.dumps(content), encoding="utf-8")

    def features(self, path: Path, images: int, words: str) -> Features | None:
        """The features in a file, where it has those of all images but the unreadable ones."""
        values = np.load(path, mmap_mode="c")
        if len(values) != images - len(self.unreadable):
            return None
        readable = np.setdiff1d(np.arange(images), [*self.unreadable])
        return Features(values, words, readable, self.unreadable, self.copies)


@dataclass(frozen=True, eq=False)
class _Making:
    """Features of images by a network, written into the output folder."""

    images: ImageSet
    choice: Choice
    out: Path
    tell: Tell

    def features(self) -> Features:
        form = self._form()
        blank = self._dataset(np.broadcast_to(np.zeros((), np.uint8), (1, *form.shape)))
        choice, embedder = self.choice, None
        if choice.network is not None:
            embedder = embedding.pretrained(choice.network, blank, choice.weights, choice.resize)
        elif choice.trial is not None:
            embedder = embedding.of_trial(choice.trial, blank, choice.resize)
        if embedder:
            content: dict[str, object] = {"network": embedder.provenance(blank)["key"]}
            words = f"{embedder.network}, weights: {embedder.weights}"
        else:
            content = {"simclr": choice.steps, "seed": choice.seed}
            words = f"SimCLR trained here for {choice.steps} steps"
        key = short_hash(canonical({**content, "images": self.images.stamp, "form": form.shape}))
        remark = None if embedder else BETTER
        if (known := self._known(key)) is not None:
            return replace(known, words=words, remark=remark)
        read = self._read(form)
        dataset = self._dataset(read.images)
        embedder = embedder or self._trained(dataset, key)
        self._embed(embedder, dataset, _Note(key, self.images.stamp, read.unreadable, _copies(read.images)))
        pixels.remove(self._pixels)
        made = self._known(key)
        assert made is not None
        return replace(made, words=words, remark=remark)

    @property
    def _pixels(self) -> Path:
        return self.out / ".pixels"

    @property
    def _weights(self) -> Path:
        """Of SimCLR, until features are made by it."""
        return self.out / ".simclr.pt"

    def _form(self) -> Form:
        if self.images.stored is not None:
            channels, size, _ = self.images.stored.shape[1:]
            return Form(channels, size)
        assert self.images.paths is not None
        largest = LARGEST if self.choice.network or self.choice.trial else LARGEST_TO_TRAIN
        return pixels.common_form(self.images.paths, self.choice.resize, largest)

    def _read(self, form: Form) -> pixels.Pixels:
        if self.images.stored is not None:
            return pixels.Pixels(self.images.stored, np.arange(len(self.images.stored)), {})
        assert self.images.paths is not None
        return pixels.read_pixels(
            self.images.paths, form, self.images.stamp, self._pixels, lambda done, of: self.tell("reading", done, of)
        )

    def _dataset(self, images: np.ndarray) -> Dataset:
        """The images as a data set without labels and without a test split."""
        mean, std = moments(images)
        none = np.full(len(images), -1)
        return Dataset(self.images.source, images, none, images[:0], none[:0], (), mean, std, True, self.images.stamp)

    def _known(self, key: str) -> Features | None:
        """The features that are there already, if they were made of the same."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = _Note.read(self.out / "features.json")
            if note.key == key:
                return note.features(self.out / "features.npy", len(self.images.files), "")
        return None

    def _embed(self, embedder: Embedder, dataset: Dataset, note: _Note) -> None:
        """Write the features part by part, and the note last."""
        (self.out / "features.json").unlink(missing_ok=True)  # it says what the features were that are overwritten
        parts = self.out / f".features-{note.key}.parts"
        count, done = len(dataset.train_images), 0
        device = _device(self.choice.device)
        array: np.memmap | None = None
        for part in embedding.features_of(dataset.train_images, parts, dataset, embedder, device):
            if array is None:
                array = open_memmap(self.out / "features.npy", "w+", np.float32, (count, part.shape[1]))
            array[done : done + len(part)] = part
            done += len(part)
            self.tell("embedding", done, count)
        assert array is not None
        array.flush()
        write_atomically(self.out / "features.json", note.write)
        pixels.remove(parts)
        self._weights.unlink(missing_ok=True)

    def _trained(self, dataset: Dataset, key: str) -> Embedder:
        """SimCLR's network, trained on these images, or as an interrupted call has left it."""
        name = "small_convnet"
        backbone = networks.backbone(name, dataset.shape, None, _resize(dataset))
        try:
            state = checkpoints.read(self._weights, {"key": key})
        except (FileNotFoundError, checkpoints.Refused):
            state = trained_backbone(_train(name, dataset, self.choice, self.tell))
            checkpoints.write(self._weights, dict(state), {"key": key})
        backbone.load_state_dict(state)
        return Embedder(name, backbone, "SimCLR trained here", _resize(dataset))


def _resize(dataset: Dataset) -> int | None:
    return LARGEST_TO_TRAIN if dataset.shape[-1] > LARGEST_TO_TRAIN else None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _train(name: str, dataset: Dataset, choice: Choice, tell: Tell) -> Mapping[str, Mapping[str, object]]:
    """Train SimCLR on at most `MOST_TO_TRAIN` of the images; the state of its parts."""
    device = _device(choice.device)
    streams = Streams(choice.seed, device)
    generator = np.random.default_rng(choice.seed)
    chosen = np.sort(generator.permutation(len(dataset.train_images))[:MOST_TO_TRAIN])
    everything = torch.arange(len(chosen), device=device)
    task = Task(
        images=torch.from_numpy(np.ascontiguousarray(dataset.train_images[chosen])).to(device),
        labels=torch.full_like(everything, -1),
        labelled=everything[:0],
        unlabelled=everything,
        probe=everything[:0],
        classes=0,
        epochs=choice.steps,
        steps=1,
        views=views.of(dataset, views.ViewSettings(), device),
    )
    network = NetworkBuilder(name, dataset.shape, device, "float32", streams, resize=_resize(dataset))
    config = simclr.Config(batch_size=max(2, min(256, len(chosen))))
    method = methods.load("simclr").Method(config, task, network, streams)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network loses more by more threads than it wins
    try:
        for step in range(choice.steps):
            method.train_epoch(step)
            tell("training", step + 1, choice.steps)
    finally:
        torch.set_num_threads(threads)
    return {name: part.state_dict() for name, part in stateful_parts(method).items()}
