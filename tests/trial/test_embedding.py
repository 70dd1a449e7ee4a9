"""Features of images as a data set of vectors: what is written, going on after an interruption, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lnl import data, networks
from lnl.cli.main import main
from lnl.functional.image_operations import normalise
from lnl.storage import kept
from lnl.storage.objects import StorageError
from lnl.storage.store import Store
from lnl.training.learner import trained_backbone
from lnl.trial import embedding
from lnl.trial.config import Trial
from lnl.trial.embedding import Embedder
from lnl.trial.provenance import Current
from lnl.trial.run import run
from lnl.trial.trained import save_trained

CPU = torch.device("cpu")
LAST = 1797  # digits, for training and testing


class Counted(nn.Module):
    """A backbone that counts the images that it has seen."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.seen = backbone, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        features: torch.Tensor = self.backbone(images)
        return features


@pytest.fixture
def embedder() -> Embedder:
    torch.manual_seed(0)
    return Embedder("small_convnet", Counted(networks.backbone("small_convnet", (1, 8, 8))), "some weights")


@pytest.fixture
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART", 400)


def test_features_and_labels_become_a_data_set(tmp_path: Path, digits: data.Dataset, embedder: Embedder) -> None:
    embedding.embed(digits, embedder, tmp_path / "digits.npz", CPU)
    made = data.load("features:digits.npz", tmp_path)
    backbone = embedder.backbone.eval()
    with torch.no_grad():
        images = torch.from_numpy(np.array(digits.test_images))
        expected = backbone(normalise(images, digits.mean, digits.std))
    np.testing.assert_allclose(made.test_images, expected.numpy(), atol=1e-5)
    assert made.class_names == digits.class_names and made.shape == (96,)
    assert np.array_equal(made.train_labels, digits.train_labels)
    assert np.array_equal(made.test_labels, digits.test_labels)
    with np.load(tmp_path / "digits.npz") as arrays:
        provenance = json.loads(str(arrays["provenance"]))
    known = {name: provenance[name] for name in ("images", "data", "network", "weights_from", "resize")}
    assert known == {
        "images": "digits", "data": digits.checksum, "network": "small_convnet", "weights_from": "some weights",
        "resize": None,
    }  # fmt: skip


def test_an_interrupted_computation_goes_on(tmp_path: Path, digits: data.Dataset, embedder: Embedder) -> None:
    """It gives the same bytes, computes only what is missing or damaged, and leaves nothing behind."""
    embedding.embed(digits, embedder, tmp_path / "whole.npz", CPU)
    assert embedder.backbone.seen == LAST

    def interrupt(done: int, of: int) -> None:
        assert of == LAST
        if done == 1200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedding.embed(digits, embedder, tmp_path / "again.npz", CPU, interrupt)
    (parts,) = tmp_path.glob(".again.npz-*.parts")
    assert sorted(path.name for path in parts.rglob("*.npy")) == ["0.npy", "400.npy", "800.npy"]
    (parts / "train" / "400.npy").write_bytes(b"damaged")
    embedder.backbone.seen = 0
    embedding.embed(digits, embedder, tmp_path / "again.npz", CPU)
    assert embedder.backbone.seen == LAST - 800
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_the_same_content_is_embedded_once(tmp_path: Path, digits: data.Dataset, embedder: Embedder) -> None:
    file, told = tmp_path / "digits.npz", []
    embedding.embed(digits, embedder, file, CPU)
    embedder.backbone.seen = 0
    embedding.embed(digits, embedder, file, CPU, lambda done, of: told.append((done, of)))
    assert embedder.backbone.seen == 0 and told == [(LAST, LAST)]
    with torch.no_grad():
        next(embedder.backbone.parameters()).add_(1)
    with pytest.raises(data.DataError, match="is there, and not made of these images and this network: remove it or"):
        embedding.embed(digits, embedder, file, CPU)


def test_features_that_are_no_numbers_are_refused(tmp_path: Path, digits: data.Dataset, embedder: Embedder) -> None:
    with torch.no_grad():
        next(embedder.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(data.DataError, match="small_convnet gives features that are no finite numbers"):
        embedding.embed(digits, embedder, tmp_path / "digits.npz", CPU)


def test_images_without_a_label_stay_without(tmp_path: Path, embedder: Embedder) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    known = {"x_train": images[:12], "y_train": np.arange(12) % 2, "x_test": images[:4], "y_test": np.arange(4) % 2}
    files = np.array([f"{number}.png" for number in range(30)])
    np.savez(tmp_path / "some.npz", x_unlabelled=images[12:], train_files=files, **known)
    before = data.load("npz:some.npz", tmp_path)
    order = np.roll(np.arange(30), 5)  # those without a label are not the last ones
    mixed = replace(
        before,
        train_images=before.train_images[order],
        train_labels=before.train_labels[order],
        train_files=tuple(files[order]),
    )
    embedding.embed(mixed, embedder, tmp_path / "made.npz", CPU)
    made = data.load("features:made.npz", tmp_path)
    assert list(made.train_labels) == [0, 1] * 6 + [-1] * 18
    assert made.train_files == (*files[:12], *files[order][:5], *files[12:25])


@pytest.mark.parametrize("truth", ["known", "of some", "unknown"])
def test_given_labels_go_along(tmp_path: Path, embedder: Embedder, truth: str) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (30, 8, 8), np.uint8), np.arange(30) % 2
    columns = {"y_train_given_ann": generator.integers(-1, 2, 30), "y_train_given_bob": generator.integers(-1, 2, 30)}
    true = {"known": {"y_train": labels}, "of some": {"y_train": np.where(labels, labels, -1)}, "unknown": {}}[truth]
    np.savez(tmp_path / "some.npz", x_train=images, x_test=images[:4], y_test=labels[:4], **true, **columns)
    before = data.load("npz:some.npz", tmp_path)
    embedding.embed(before, embedder, tmp_path / "made.npz", CPU)
    after = data.load("features:made.npz", tmp_path)
    assert list(after.given) == ["ann", "bob"] and after.truth_known == before.truth_known == (truth == "known")
    assert all(np.array_equal(after.given[name], before.given[name]) for name in after.given)
    assert np.array_equal(after.train_labels, before.train_labels)
    relabelled = replace(before, given={**before.given, "ann": 1 - before.given["bob"]})
    with pytest.raises(data.DataError, match="is there, and not made of these images"):
        embedding.embed(relabelled, embedder, tmp_path / "made.npz", CPU)


def test_pre_trained_weights_have_their_own_normalisation(digits: data.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    assert networks.normalisation("beit_b_16") == networks.normalisation("efficientnet_lite0")
    for name, channel in (("efficientnet_lite0", 0.5), ("resnet18_imagenet", 0.485), ("small_convnet", None)):
        backbone = networks.backbone(name, (1, 32, 32))
        torch.save(getattr(backbone, "network", backbone).state_dict(), path)
        made = embedding.pretrained(name, digits, str(path), 32)
        assert (made.normalisation and made.normalisation[0][0]) == channel and made.weights == "weights.pt"


# ----------------------------------------------------------------------------------------------------- trained networks


def stored(tmp_path: Path, trial: Trial) -> Store:
    """A results folder with the row of a trial."""
    store = Store(tmp_path / "results")
    row = {"trial": trial.id, "attempt": 1, "config": trial.model_dump_json(), "status": "ok"}
    store.write_attempt("x", row, [])
    return store


# ---------------------------------------------------------------------------------------------------------- the command


def test_a_network_of_the_users_own_brings_its_weights(own_folder: Path, digits: data.Dataset) -> None:
    (own_folder / "mine.py").write_text(
        "from torch import nn\n\n"
        "def mine(channels, size):\n"
        "    network = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 3))\n"
        "    network.width = 3\n"
        "    return network\n"
    )
    made = embedding.pretrained("mine.py", digits, None, None)
    assert made.weights == "the network's own" and made.normalisation is None
    embedding.embed(digits, made, own_folder / "digits.npz", CPU)
    assert data.load("features:digits.npz", own_folder).shape == (3,)


def test_the_command_embeds_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LNL_DATA", str(tmp_path / "data"))
    for split, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            (folder := tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                colour = (40 * number, 90, 200 if name == "cat" else 20)
                Image.new("RGB", (20, 16), colour).save(folder / f"{number}.png")
    torch.manual_seed(0)
    torch.save(networks.backbone("small_convnet", (3, 16, 16)).state_dict(), "net.pt")
    assert main(["embed", "photos", "--network", "small_convnet", "--weights", "net.pt"]) == 0
    assert capsys.readouterr().out == "Data set: features:photos-small_convnet.npz\n"
    made = data.load("features:photos-small_convnet.npz")
    assert made.class_names == ("cat", "dog") and made.train_images.shape == (12, 96)
    assert made.test_files == tuple(f"test/{name}/{number}.png" for name in ("cat", "dog") for number in range(3))
    assert made.train_files and made.train_files[-1] == "train/dog/5.png"
    trial = Trial(method="supervised", dataset="features:photos-small_convnet.npz", network="linear", epochs=2, steps=4)
    *_, row = run(trial)
    assert row.metrics["test", "accuracy"] > 0.5


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["digits"], 2, "Give --network, with --weights of a pre-trained one, or --trial RESULTS/ID alone."),
        (["digits", "--network", "resnet18", "--trial", "a/b"], 2, "Give --network"),
        (["digits", "--network", "resnet18"], 2, "The features of resnet18 with random weights say little"),
        (["digits", "--network", "resnet18", "--weights", "none.pt"], 2, "the weights none.pt cannot be read"),
        (["digits", "--network", "resnet19", "--weights", "none.pt"], 2, "network 'resnet19' is unknown"),
        (["digits", "--network", "mlp", "--weights", "none.pt"], 2, "mlp takes vectors, and the data set has images"),
        (["digits_vectors", "--network", "mlp", "--weights", "none.pt"], 1, "digits_vectors holds vectors already"),
        (["nothing", "--network", "resnet18", "--weights", "none.pt"], 1, "There is no data set 'nothing'"),
        (["digits", "--trial", "abc"], 2, "'abc' is no trial of a results folder: write RESULTS/ID"),
        (["digits", "--trial", "results/abc"], 2, "results has no trial 'abc'"),
    ],
)
def test_the_command_refuses(
    flags: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", *flags]) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and sentence in error[0]


@pytest.mark.parametrize("resize", [None, 16])
def test_the_network_of_a_trial_that_others_start_from(
    tmp_path: Path, digits: data.Dataset, resize: int | None
) -> None:
    trial = Trial(
        method="supervised", dataset="digits", network="small_convnet", labels=50, resize=resize, epochs=1, steps=2
    )
    *_, row = run(trial)
    store = stored(tmp_path, trial)
    parts = row.snapshot()["parts"]
    save_trained(store.trained, trial, parts, Current())
    made = embedding.of_trial(f"{store.root}/{trial.id}", digits, None)
    assert (made.network, made.resize, made.weights) == ("small_convnet", resize, f"trial {trial.id} (supervised)")
    assert made.normalisation is None, "the trial has seen digits by their own mean"
    trained = trained_backbone(parts)
    loaded = made.backbone.state_dict()
    assert loaded.keys() == trained.keys() and all(torch.equal(loaded[name], trained[name]) for name in loaded)
    embedding.of_trial(f"{store.root}/{trial.id}", digits, 8)  # other pixels, the same weights
    with pytest.raises(StorageError, match=r"takes other images than npz:rgb.npz: its content does not fit"):
        colours = np.zeros((4, 8, 8, 3), np.uint8)
        labels = np.array([0, 1, 0, 1])
        np.savez(tmp_path / "rgb.npz", x_train=colours, y_train=labels, x_test=colours, y_test=labels)
        embedding.of_trial(f"{store.root}/{trial.id}", data.load("npz:rgb.npz", tmp_path), None)


@pytest.mark.parametrize("method", ["mixmatch", "co_teaching"])  # one averages its weights, one has two networks
def test_the_network_of_a_trial_that_keeps_its_weights(tmp_path: Path, digits: data.Dataset, method: str) -> None:
    trial = Trial(method=method, dataset="digits", network="small_convnet", labels=50, epochs=1, steps=2)
    *_, row = run(trial)
    store = stored(tmp_path, trial)
    kept.write(store, "x", trial.id, 1, 1, row.keep({"weights"}))
    made = embedding.of_trial(f"{store.root}/{trial.id}", digits, None)
    expected, loaded = trained_backbone(row.snapshot()["parts"]), made.backbone.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in loaded)
    path = store.kept_path("weights", "x", trial.id, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match="cannot be used"):
        embedding.of_trial(f"{store.root}/{trial.id}", digits, None)


def test_weights_that_no_trial_has_kept(tmp_path: Path, digits: data.Dataset) -> None:
    trial = Trial(method="supervised", dataset="digits", network="small_convnet")
    store = stored(tmp_path, trial)
    with pytest.raises(StorageError, match=rf"has kept no weights of trial {trial.id}: run its study with --keep weig"):
        embedding.of_trial(f"{store.root}/{trial.id}", digits, None)
