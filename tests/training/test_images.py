"""Images that do not fit into memory: the same as resident ones, bounded, and errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lnl import Noise, Trial, Validation, data, run
from lnl.data import DataError, Unfit
from lnl.data.files import ImageFiles
from lnl.training import images
from lnl.training.images import Decoded, Mapped, Pass, Viewed, expect, held, in_parts
from lnl.trial.run import Execution, draw

CPU = torch.device("cpu")
SIZE = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pets`: 3 classes with 20 training and 6 test images each, JPEGs of unlike sizes."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (int(generator.integers(14, 20)), int(generator.integers(14, 20)), 3)
                pixels = generator.integers(0, 120, shape) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg")
    return root


@pytest.fixture
def files(root: Path) -> ImageFiles:
    dataset = data.load(f"folder:pets?size={SIZE}&read=on_demand", root)
    assert isinstance(dataset.train_images, ImageFiles)
    return dataset.train_images


@pytest.fixture
def decoded(files: ImageFiles) -> Iterator[Decoded]:
    made = held(files, np.arange(len(files))[::-1].copy(), CPU, workers=2)
    assert isinstance(made, Decoded)
    yield made
    made.results = None  # its workers end


def resident(root: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(data.load(f"folder:pets?size={SIZE}", root).train_images))


def test_a_folder_that_is_read_on_demand_is_the_same_data_set_without_a_copy(root: Path) -> None:
    copied, stayed = (data.load(f"folder:pets?size={SIZE}{option}", root) for option in ("", "&read=on_demand"))
    assert (copied.checksum, copied.mean, copied.std) == (stayed.checksum, stayed.mean, stayed.std)
    assert (copied.train_files, copied.remarks, copied.shape) == (stayed.train_files, stayed.remarks, stayed.shape)
    assert np.array_equal(copied.train_images, stayed.train_images[:])
    assert np.array_equal(copied.test_images[3:5], stayed.test_images[np.array([3, 4])])
    in_cache = {path.name for path in (root / "cache").glob("*/*_images.npy")}
    assert len(list((root / "cache").glob("*/train_images.npy"))) == 1 == len(in_cache & {"train_images.npy"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "supervised", "noise": Noise("symmetric", 0.3)},
        {"method": "mixmatch", "labels": 18, "validation": Validation(6)},
        {"method": {"name": "simclr", "batch_size": 16}},
        {"method": "ieg", "probe": 6, "noise": Noise("symmetric", 0.3)},
    ],
    ids=["supervised", "mixmatch", "simclr", "ieg"],
)
def test_rows_are_those_of_resident_images(root: Path, settings: dict[str, object]) -> None:
    own = {"method.batch_size": 8, "epochs": 2, "steps": 3, "network": "small_convnet"}
    rows = []
    for option in ("", "&read=on_demand"):
        base = Trial(dataset=f"folder:pets?size={SIZE}{option}", **settings)  # type: ignore[arg-type]
        rows.append(list(run(base.override(own), Execution(device="cpu", data=root))))
    for here, there in zip(*rows, strict=True):
        assert here.metrics == there.metrics and here.facts == there.facts
        assert here.arrays.keys() == there.arrays.keys()
        assert all(torch.equal(here.arrays[key].nan_to_num(), there.arrays[key].nan_to_num()) for key in here.arrays)


def test_decoded_images_are_those_of_the_array_in_any_order(root: Path, decoded: Decoded) -> None:
    expected = resident(root).flip(0)
    assert tuple(decoded.shape) == tuple(expected.shape) and decoded.ndim == 4 and len(decoded) == 60
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(0, 60, (6, 7), generator=generator)
    expect(decoded, batches)
    for batch in batches:
        assert torch.equal(decoded[batch], expected[batch])
        again = torch.cat([batch, batch[:3].flip(0)])  # more views, and images that no batch announced
        assert torch.equal(decoded[again], expected[again])
    assert torch.equal(decoded[5:9], expected[5:9]) and decoded[:0].shape == (0, 3, SIZE, SIZE)
    assert torch.equal(in_parts(decoded, lambda part: part.float()), expected.float())


def test_workers_go_ahead_of_what_is_taken_and_no_further(decoded: Decoded) -> None:
    decoded.ahead = 8
    batches = torch.arange(60).view(15, 4)
    expect(decoded, batches)
    decoded[batches[0]]
    assert decoded.asked | decoded.kept.keys() == set(range(12))  # the batch itself, and two more
    decoded[batches[1]]
    assert decoded.asked | decoded.kept.keys() == set(range(16))
    decoded[torch.tensor([40])]  # announced by nobody: it moves no pass
    assert decoded.asked | decoded.kept.keys() == {*range(16), 40}


def test_a_pass_moves_when_its_next_batch_is_taken() -> None:
    going = Pass([torch.tensor([3, 1]), torch.tensor([2, 5]), torch.tensor([4, 0])])
    assert going.ahead_of([2, 5], 2) == []
    assert going.ahead_of([7, 1, 3], 2) == [2, 5]
    assert going.ahead_of([2, 5], 3) == [4, 0]
    assert going.ahead_of([4, 0], 3) == [] == going.ahead_of([4, 0], 3)


def test_memory_is_bounded(decoded: Decoded) -> None:
    decoded.most, decoded.ahead = 10, 4
    for batch in torch.arange(60).view(12, 5):
        decoded[batch]
        assert len(decoded.kept) <= 10
    assert list(decoded.kept) == list(range(50, 60)), "those that were taken last are kept"


def test_the_global_random_stream_is_left_alone(decoded: Decoded) -> None:
    state = torch.get_rng_state()
    decoded[torch.arange(3)]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_damaged_later_is_named(root: Path, tmp_path: Path, workers: int) -> None:
    paths = [tmp_path / "good.jpg", tmp_path / "bad.jpg", tmp_path / "gone.jpg"]
    Image.new("RGB", (20, 20)).save(paths[0])
    paths[1].write_bytes(paths[0].read_bytes()[:300])
    broken = Decoded(ImageFiles.of(tmp_path, paths, 3, 8), CPU, workers)
    assert broken[torch.tensor([0, 0])].shape == (2, 3, 8, 8)
    for position, name in ((1, "bad.jpg"), (2, "gone.jpg"), (1, "bad.jpg")):
        with pytest.raises(DataError, match=rf"{name}.* cannot be used as an image \(.+\): replace or remove it\.$"):
            broken[torch.tensor([0, position])]
    assert broken[torch.tensor([0])].shape == (1, 3, 8, 8)
    broken.results = None


def test_a_damaged_file_is_found_before_training(root: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "few" / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(tmp_path / "few" / split / name / "1.png")
    (tmp_path / "few" / "test" / "bee" / "2.png").write_text("no image", encoding="utf-8")
    with pytest.raises(DataError, match=r"bee/2\.png cannot be used as an image"):
        data.load("folder:few?size=8&read=on_demand", tmp_path)


def test_arrays_beyond_half_of_the_memory_stay_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = data.load(f"folder:pets?size={SIZE}", root).train_images
    index = np.array([5, 3, 40, 41])
    assert isinstance(held(stored, index, CPU, 0), torch.Tensor)
    monkeypatch.setattr(images, "_memory", lambda device: 4 * stored[0].nbytes)
    mapped = held(stored, index, CPU, 0)
    assert isinstance(mapped, Mapped) and len(mapped) == 4 and tuple(mapped.shape) == (4, 3, SIZE, SIZE)
    places = torch.tensor([3, 0, 3])
    assert torch.equal(mapped[places], torch.from_numpy(np.array(stored[index[places.numpy()]])))
    assert torch.equal(mapped[1:], torch.from_numpy(np.array(stored[index[1:]])))


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 60])
def test_rows_are_the_same_where_memory_is_small(root: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image fits on the device, or all but the test images as numbers of four bytes."""
    trial = Trial(method="supervised", dataset=f"folder:pets?size={SIZE}", network="small_convnet", epochs=1, steps=3)
    trial = trial.override({"method.batch_size": 8})
    expected, execution = next(run(trial, Execution(device="cpu", data=root))), Execution(device="cpu", data=root)
    monkeypatch.setattr(images, "_memory", lambda device: 2 * room * 3 * SIZE**2)
    seen, truth = draw(trial, execution)
    assert isinstance(seen.images, torch.Tensor) == bool(room) and isinstance(truth.test_images, Viewed)
    assert next(run(trial, execution)).metrics == expected.metrics


def test_instance_noise_needs_all_images_at_once(root: Path) -> None:
    trial = Trial(method="supervised", dataset="folder:pets?size=12&read=on_demand", noise=Noise("instance", 0.2))
    with pytest.raises(Unfit, match="Instance-dependent noise looks at all images"):
        next(run(trial, Execution(device="cpu", data=root)))
