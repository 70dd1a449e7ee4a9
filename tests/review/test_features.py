"""Features of a user's images: what is skipped, going on after an interruption, files of features, and SimCLR."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lnl import networks
from lnl.data import DataError
from lnl.review import pixels
from lnl.review.features import Choice, features_of
from lnl.review.images import open_images
from lnl.review.items import Asked, read
from lnl.review.pixels import common_form, read_pixels
from lnl.trial import embedding
from tests.review.photos import DAMAGED


def silent(what: str, done: int, of: int) -> None:
    pass


class Interrupted(Exception):
    pass


def test_a_damaged_file_is_left_out_and_named(photos: Callable[..., Path], tmp_path: Path) -> None:
    images = open_images(str(photos()))
    form = common_form(images.paths, None, 96)
    assert form == pixels.Form(1, 8)
    told: list[tuple[int, int]] = []
    made = read_pixels(images.paths, form, "x", tmp_path / "out", lambda done, of: told.append((done, of)))
    (place,) = made.unreadable
    assert (
        images.files[place] == DAMAGED
        and "kaputt.png cannot be used as an image (of no kind that is known): replace" in made.unreadable[place]
    )
    assert made.images.shape == (24, 1, 8, 8) and place not in made.readable and told == [(25, 25)]
    for row in (0, 23):
        with images.open(int(made.readable[row])) as shown:
            assert np.array_equal(made.images[row, 0], np.asarray(shown))
    pixels.remove(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reading_goes_on_where_it_stopped(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, form = open_images(str(photos())).paths, pixels.Form(1, 8)
    assert paths is not None
    whole = np.array(read_pixels(paths, form, "x", tmp_path / "whole", lambda done, of: None).images)
    monkeypatch.setattr(pixels, "BLOCK", 10)

    def stop(done: int, of: int) -> None:
        if done == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        read_pixels(paths, form, "x", tmp_path / "again", stop)
    seen: list[Path] = []
    monkeypatch.setattr(pixels, "read_square", lambda path, size, mode: seen.append(path) or np.zeros((1, 8, 8)))
    made = read_pixels(paths, form, "x", tmp_path / "again", lambda done, of: None)
    assert seen == list(paths[20:]) and len(made.unreadable) == 1
    assert np.array_equal(made.images[:19], whole[:19]), "one of the twenty is damaged"
    seen.clear()
    read_pixels(paths, form, "other", tmp_path / "again", lambda done, of: None)
    assert len(seen) == 25, "files that have changed are read anew"


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="None of the 1 files can be read as an image"):
        common_form([tmp_path / "1.png"], None, 96)
    with pytest.raises(DataError, match=r"None of the 1 images can be read\.  The first: .*1\.png cannot be used"):
        read_pixels([tmp_path / "1.png"], pixels.Form(1, 8), "x", tmp_path / "out", lambda done, of: None)


@pytest.mark.slow  # the first optimizer of a process imports for a second
def test_features_by_simclr(photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made once; an interrupted embedding trains nothing again; other settings make others."""
    asked = Asked(str(photos()), features=Choice(steps=3))
    out = tmp_path / "out"
    told: set[str] = set()

    def stop(what: str, done: int, of: int) -> None:
        told.add(what)
        if what == "embedding":
            raise Interrupted

    with pytest.raises(Interrupted):
        read(asked, out, 4, stop)
    assert told == {"reading", "training", "embedding"} and (out / ".simclr.pt").exists()
    told.clear()
    items = read(asked, out, 4, lambda what, done, of: told.add(what))
    assert told == {"embedding"}
    assert items.features.shape == (24, 96) and items.features_from == "SimCLR trained here for 3 steps"
    assert items.unreadable == (DAMAGED,) and DAMAGED not in items.images.files
    assert [*items.columns] == ["folder"] and len(items.columns["folder"]) == 24
    assert sorted(path.name for path in out.iterdir()) == ["features.json", "features.npy"]
    assert "1 of 25 images are left out: " in items.remarks[0]
    assert items.remarks[-1].endswith("or --features FILE.")
    before = np.array(items.features)
    told.clear()
    assert np.array_equal(read(asked, out, 4, lambda what, done, of: told.add(what)).features, before) and not told
    again = read(Asked(asked.images, features=Choice(steps=3)), tmp_path / "other", 4, silent)
    assert np.array_equal(again.features, before), "the same seed gives the same features"
    seed = read(Asked(asked.images, features=Choice(steps=3, seed=1)), tmp_path / "seed", 4, silent)
    assert not np.array_equal(seed.features, before)


def test_features_by_a_network(photos: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = networks.backbone("small_convnet", (1, 8, 8))
    torch.save(backbone.state_dict(), tmp_path / "net.pt")
    choice = Choice(network="small_convnet", weights=str(tmp_path / "net.pt"))
    images = open_images(str(photos()))
    made = features_of(images, choice, tmp_path / "out", None, silent)
    assert made.words == "small_convnet, weights: net.pt" and made.remark is None
    pictures = np.stack([np.asarray(images.open(int(place))) for place in made.readable])[:, None]
    scaled = torch.from_numpy(pictures).float() / 255
    with torch.no_grad():
        expected = backbone.eval()((scaled - scaled.mean()) / scaled.std(correction=0))
    np.testing.assert_allclose(made.values, expected.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match=r"the weights .*none\.pt cannot be read"):
        features_of(images, Choice(network="small_convnet", weights="none.pt"), tmp_path / "out", None, silent)


def test_an_interrupted_embedding_goes_on(
    photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "PART", 10)

    class Counted(nn.Module):
        seen = 0

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            Counted.seen += len(images)
            return images.flatten(1) * self.scale

    made = embedding.Embedder("counted.py", Counted(), "none")
    monkeypatch.setattr(embedding, "pretrained", lambda *arguments: made)
    monkeypatch.setattr(embedding, "_code", lambda network: None)
    images = open_images(str(photos()))

    def stop(what: str, done: int, of: int) -> None:
        if what == "embedding" and done == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        features_of(images, Choice(network="counted.py"), tmp_path / "out", None, stop)
    Counted.seen = 0
    whole = features_of(images, Choice(network="counted.py"), tmp_path / "out", None, silent)
    assert Counted.seen == 4 and len(whole.values) == 24
    fresh = features_of(images, Choice(network="counted.py"), tmp_path / "fresh", None, silent)
    assert np.array_equal(fresh.values, whole.values)


# ---------------------------------------------------------------------------------------------------- files of features


def vectors(tmp_path: Path, count: int = 24, name: str = "some.npy", size: int = 5) -> np.ndarray:
    made = np.random.default_rng(size).normal(size=(count, size)).astype(np.float32)
    np.save(tmp_path / name, made)
    return made


def test_features_of_a_file(photos: Callable[..., Path], tmp_path: Path) -> None:
    images = open_images(str(photos(damaged=False)))
    expected = vectors(tmp_path)
    made = features_of(images, Choice(files=(str(tmp_path / "some.npy"),)), tmp_path, None, silent)
    assert isinstance(made.values, np.memmap) and np.array_equal(made.values, expected) and made.words == "some.npy"
    torch.from_numpy(made.values)  # it warns, which is an error here, where it may not write


def test_several_files_stand_side_by_side(photos: Callable[..., Path], tmp_path: Path) -> None:
    images = open_images(str(photos(damaged=False)))
    first, second = vectors(tmp_path), 100 * vectors(tmp_path, name="more.npy", size=7)
    np.save(tmp_path / "more.npy", second)
    files = (str(tmp_path / "some.npy"), str(tmp_path / "more.npy"))
    made = features_of(images, Choice(files=files), tmp_path, None, silent)
    assert made.values.shape == (24, 12) and made.words == "some.npy and more.npy"
    for part, whole in ((made.values[:, :5], first), (made.values[:, 5:], second)):
        np.testing.assert_allclose(np.square(part).sum(1).mean(), 1, rtol=1e-5)
        np.testing.assert_allclose(part / part[0, 0], whole / whole[0, 0], rtol=1e-4)


def test_rows_of_a_npz_are_found_by_the_names_of_files(photos: Callable[..., Path], tmp_path: Path) -> None:
    """As where `lnl embed` has seen more images, in another order."""
    images = open_images(str(photos(damaged=False)))
    order = np.random.default_rng(0).permutation(24)
    expected, labels = vectors(tmp_path), np.arange(24) % 2
    files = np.array(images.files)[order]
    arrays = {"x_train": expected[order], "y_train": labels, "x_test": expected, "y_test": labels}
    np.savez(tmp_path / "made.npz", train_files=files, **arrays)
    made = features_of(images, Choice(files=(str(tmp_path / "made.npz"),)), tmp_path, tmp_path, silent)
    assert np.array_equal(made.values, expected)
    np.savez(tmp_path / "less.npz", train_files=np.array(["other.png", *files[1:]]), **arrays)
    with pytest.raises(DataError, match=r"has no features of .* \(images without: 1\): make them of all images"):
        features_of(images, Choice(files=(str(tmp_path / "less.npz"),)), tmp_path, tmp_path, silent)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((23, 4), np.float32), "has 23 rows, but there are 24 images"),
        (np.zeros((24, 4), np.int64), r"is int64\(24, 4\), but must be floating point of shape \(N, D\)"),
        (np.zeros(24, np.float32), "must be floating point of shape"),
        (np.where(np.arange(96).reshape(24, 4) == 13, np.nan, 0.0), "row 3 has entries that are no finite numbers"),
    ],
)
def test_files_that_are_no_features(
    array: np.ndarray, sentence: str, photos: Callable[..., Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "bad.npy", array)
    images = open_images(str(photos(damaged=False)))
    with pytest.raises(DataError, match=sentence):
        features_of(images, Choice(files=(str(tmp_path / "bad.npy"),)), tmp_path, None, silent)
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.npy cannot be read .* write it anew with numpy\.save"):
        features_of(images, Choice(files=(str(tmp_path / "bad.npy"),)), tmp_path, None, silent)


def test_a_data_set_of_vectors_has_its_features(tmp_path: Path) -> None:
    arrays = {"x_train": np.ones((6, 3), np.float32), "y_train": np.arange(6) % 2}
    np.savez(tmp_path / "v.npz", x_test=arrays["x_train"], y_test=arrays["y_train"], **arrays)
    items = read(Asked(f"features:{tmp_path}/v.npz", data=tmp_path), tmp_path / "out", 2, silent)
    assert items.features_from == "the data set itself" and items.features.shape == (6, 3)
    assert items.remarks == ("5 of 6 images are equal to an earlier one, 3 of them with another label (as 0 and 1).",)
    torch.from_numpy(items.features)
    with pytest.raises(ValueError, match="holds features, not images"):
        items.images.open(0)


def test_labels_are_checked_before_features_are_made(photos: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="25 images have a label, but at least 30 are needed"):
        read(Asked(str(photos())), tmp_path / "out", 30, lambda *told: pytest.fail("nothing is made"))


@pytest.mark.slow
def test_features_that_are_half_overwritten_do_not_count(photos: Callable[..., Path], tmp_path: Path) -> None:
    """Neither those of an interrupted call nor several files that are joined pass for what the note says."""
    images, out = open_images(str(photos(damaged=False))), tmp_path / "out"
    before = np.array(features_of(images, Choice(steps=1), out, None, silent).values)
    vectors(tmp_path, size=96)
    files = (str(out / "features.npy"), str(tmp_path / "some.npy"))
    joined = features_of(images, Choice(files=files), out, None, silent)
    assert joined.values.shape == (24, 192)
    again = features_of(images, Choice(steps=1), out, None, lambda *told: pytest.fail("they are there"))
    assert np.array_equal(again.values, before)

    def stop(what: str, done: int, of: int) -> None:
        if what == "embedding":
            raise Interrupted

    with pytest.raises(Interrupted):
        features_of(images, Choice(steps=1, seed=1), out, None, stop)
    told: set[str] = set()
    features_of(images, Choice(steps=1), out, None, lambda what, done, of: told.add(what))
    assert "embedding" in told


@pytest.mark.slow
def test_a_note_that_is_damaged_makes_features_anew(photos: Callable[..., Path], tmp_path: Path) -> None:
    images = open_images(str(photos()))
    made = features_of(images, Choice(steps=1), tmp_path / "out", None, silent)
    note = tmp_path / "out" / "features.json"
    assert json.loads(note.read_text(encoding="utf-8"))["copies"] == made.copies.tolist()
    note.write_text("{", encoding="utf-8")
    told: set[str] = set()
    features_of(images, Choice(steps=1), tmp_path / "out", None, lambda what, done, of: told.add(what))
    assert told == {"reading", "training", "embedding"}
