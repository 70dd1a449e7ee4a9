"""Embeddings: a pre-trained network turns a data set of images into one of vectors, a file that `features:FILE` reads.

The features of each 2,048 images are written as soon as they are computed, into a hidden folder beside the file that is
made, so that an interrupted computation goes on.  The file says what it was made of (`provenance`, JSON).  Of one data
set, one network and one set of weights it is made once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lnl import networks
from lnl.data import DataError, Dataset, Unfit, npz
from lnl.data.dataset import Stored
from lnl.functional.image_operations import normalise
from lnl.networks import Moments
from lnl.storage import checkpoints
from lnl.storage.atomic import write_atomically
from lnl.storage.files import open_file
from lnl.storage.objects import StorageError
from lnl.storage.places import canonical, place, short_hash
from lnl.storage.store import Store
from lnl.system import user_code
from lnl.training.learner import evaluation_batch
from lnl.training.streams import digest
from lnl.trial import trained

PART = 2048  # images whose features are one file
Tell = Callable[[int, int], None]  # images that are done, of how many


@dataclass(frozen=True, eq=False)
class Embedder:
    """A network that is trained no further."""

    network: str
    backbone: nn.Module
    weights: str  # where they come from, in words
    resize: int | None = None
    normalisation: Moments | None = None  # of the images; None: by their own data set's mean and deviation

    def provenance(self, dataset: Dataset) -> dict[str, object]:
        """What the features of a data set are made of; `key` is equal where the content of all of it is equal."""
        content = {
            "data": dataset.checksum,
            "network": self.network,
            "resize": self.resize,
            "code": _code(self.network),
            "weights": digest(*self.backbone.state_dict().values()),
            "normalisation": self.normalisation or (dataset.mean, dataset.std),
            "given": {column: digest(torch.from_numpy(labels)) for column, labels in dataset.given.items()},
        }
        return {"images": dataset.name, "weights_from": self.weights, **content, "key": short_hash(canonical(content))}


def _code(network: str) -> str | None:
    """A hash of the file of a user's own network, with all that it imports from its folder; None for ours."""
    if not user_code.is_reference(network):
        return None
    return short_hash(repr(sorted((name, source.text) for name, source in user_code.read(network).sources.items())))


def pretrained(network: str, dataset: Dataset, weights: str | None, resize: int | None) -> Embedder:
    """A network by its name with the weights of a file, or torchvision's ("imagenet"), for the images of a data set.

    Raises `ValueError` where the network, the weights and the images do not fit together.
    """
    if weights is None and network in networks.names():
        raise ValueError(
            f"The features of {network} with random weights say little: give --weights FILE, --weights imagenet or "
            "--trial RESULTS/ID."
        )
    backbone = _backbone(network, dataset, weights, resize)
    return Embedder(
        network,
        backbone,
        Path(weights).name if weights else "the network's own",
        resize,
        networks.normalisation(network),
    )


def of_trial(path: str, dataset: Dataset, resize: int | None) -> Embedder:
    """The trained backbone of a trial, by its results folder and id, as in results/0123456789ab.

    Images are resized as the trial resized its own.  Raises `ValueError` for an unknown trial, `StorageError` where it
    has kept no weights.
    """
    root, _, trial_id = path.rpartition("/")
    if not root or not trial_id:
        raise ValueError(f"'{path}' is no trial of a results folder: write RESULTS/ID, such as results/0123456789ab.")
    trial, state = trained.final_backbone(Store(place(root)), trial_id)
    resize = resize or trial.resize
    backbone = _backbone(trial.network, dataset, None, resize)
    try:
        with checkpoints.fitting():
            _innermost(backbone).load_state_dict(_innermost_state(state))
    except checkpoints.Refused as error:
        raise StorageError(f"The network of {path} takes other images than {dataset.name}: {error}.") from error
    return Embedder(trial.network, backbone, f"trial {trial.id} ({trial.method_name})", resize)


def _innermost(backbone: nn.Module) -> nn.Module:
    """The network itself, without what resizes its images or takes its head away."""
    while isinstance(inner := getattr(backbone, "network", None), nn.Module):
        backbone = inner
    return backbone


def _innermost_state(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    prefix = "network."
    while state and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _backbone(network: str, dataset: Dataset, weights: str | None, resize: int | None) -> nn.Module:
    if len(dataset.shape) == 1:
        raise Unfit(f"{dataset.name} holds vectors already: name a data set of images.")
    return networks.backbone(network, dataset.shape, weights, resize)


def embed(
    dataset: Dataset, embedder: Embedder, file: Path, device: torch.device, tell: Tell = lambda done, of: None
) -> None:
    """Write the features of all images of a data set, with all its labels, to `file`, a .npz file.

    A file that has been made of the same content stays as it is.  Raises `DataError` for a file that holds something
    else, and where features are no finite numbers.
    """
    images = len(dataset.train_images) + len(dataset.test_images)
    provenance = embedder.provenance(dataset)
    if file.exists():
        if _key(file) == provenance["key"]:
            tell(images, images)
            return
        raise DataError(f"{file} is there, and not made of these images and this network: remove it or name another.")
    parts = file.with_name(f".{file.name}-{provenance['key']}.parts")
    features, done = {}, 0
    for split, of_split in (("train", dataset.train_images), ("test", dataset.test_images)):
        pieces = []
        for piece in features_of(of_split, parts / split, dataset, embedder, device):
            pieces.append(piece)
            done += len(piece)
            tell(done, images)
        features[split] = np.concatenate(pieces)
    arrays = _arrays(dataset, features["train"], features["test"])
    arrays[npz.PROVENANCE] = np.array(json.dumps(provenance))
    write_atomically(file, partial(_save, arrays))
    shutil.rmtree(parts, ignore_errors=True)


def _arrays(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a data set as `lnl.data.npz` reads them, with features in place of images."""
    labels, given = dataset.train_labels, dataset.given
    order, known = np.argsort(labels < 0, kind="stable"), int((labels >= 0).sum())  # those without a label last
    if given:  # beside these the truth may be unknown
        order, known = np.arange(len(labels)), len(labels)
    arrays = {
        "x_train": train[order[:known]],
        "y_train": labels[order[:known]],
        "x_test": test,
        "y_test": dataset.test_labels,
        "class_names": np.array(dataset.class_names),
        **{f"{npz.GIVEN}_{column}": of_column for column, of_column in given.items()},
    }
    if known < len(order):
        arrays["x_unlabelled"] = train[order[known:]]
    if dataset.train_files:
        arrays[npz.TRAIN_FILES] = np.array(dataset.train_files)[order]
    if dataset.test_files:
        arrays[npz.TEST_FILES] = np.array(dataset.test_files)
    return arrays


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    with path.open("wb") as file:  # to a name without .npz numpy would add it
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _key(file: Path) -> str | None:
    """The key of what a file was made of; None where it does not say, or is not one of ours."""
    with suppress(OSError, ValueError, KeyError, TypeError), open_file(file) as content, np.load(content) as arrays:
        return str(json.loads(str(arrays[npz.PROVENANCE]))["key"])
    return None


def features_of(
    images: Stored, folder: Path, dataset: Dataset, embedder: Embedder, device: torch.device
) -> Iterator[np.ndarray]:
    """The features of images (N, C, H, W), part by part: read from their file, or computed and written to it."""
    backbone = embedder.backbone.to(device).to(memory_format=torch.channels_last).eval()
    mean, std = embedder.normalisation or (dataset.mean, dataset.std)
    size = evaluation_batch(dataset.shape, embedder.resize)
    for start in range(0, len(images), PART):
        path = folder / f"{start}.npy"
        expected = min(PART, len(images) - start)
        with suppress(OSError, ValueError, EOFError), open_file(path) as file:  # else it is computed again
            known = np.load(file, allow_pickle=False)
            if len(known) == expected:
                yield known
                continue
        part = torch.from_numpy(np.array(images[start : start + expected]))
        computed = torch.cat([_of_batch(backbone, batch.to(device), mean, std) for batch in part.split(size)]).numpy()
        if not np.isfinite(computed).all():
            raise DataError(f"{embedder.network} gives features that are no finite numbers: use other weights.")
        write_atomically(path, partial(_save_part, computed))
        yield computed


@torch.inference_mode()
def _of_batch(backbone: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    features: Tensor = backbone(normalise(images.expand(-1, len(mean), -1, -1), mean, std))
    return features.float().cpu()


def _save_part(features: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, features)
