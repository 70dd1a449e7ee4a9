"""What comes out of a trial: the test set class by class, and what is kept on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lnl.data import load
from lnl.storage import kept
from lnl.storage.files import read_file
from lnl.storage.kept import Outputs
from lnl.storage.objects import StorageError
from lnl.storage.part_names import KEPT
from lnl.storage.schema import BELIEFS, PREDICTIONS
from lnl.storage.store import Store
from lnl.trial import outputs
from lnl.trial.config import Trial
from lnl.trial.evaluation import calibration_error, confusion, reliability
from lnl.trial.run import Execution, Row, assemble, run
from tests.conftest import Built

# ------------------------------------------------------------------------------------------------------- the test set


def test_the_confusion_matrix_counts_true_classes_by_row() -> None:
    predicted, labels = torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([0, 0, 1, 2, 1, 2])
    assert confusion(predicted, labels, 4).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_calibration_error_is_that_worked_out_by_hand() -> None:
    """Five images; bins of a fifteenth: confidences 0.62 and 0.64 share the tenth, as 9/15 < both <= 10/15."""
    confidence = torch.tensor([0.62, 0.64, 0.90, 0.95, 0.51])
    probabilities = torch.stack([confidence, 1 - confidence], dim=-1)
    right = torch.tensor([1, 0, 1, 1, 0])
    bins = reliability(probabilities, 1 - right)  # class 0 is predicted everywhere
    images, hits, mean = bins
    assert {place: count for place, count in enumerate(images.tolist()) if count} == {7: 1, 9: 2, 13: 1, 14: 1}
    assert hits.nonzero().flatten().tolist() == [9, 13, 14]
    assert mean[9] == pytest.approx(0.63)
    by_hand = (2 * abs(1 / 2 - 0.63) + abs(1 - 0.90) + abs(1 - 0.95) + abs(0 - 0.51)) / 5
    assert calibration_error(bins) == pytest.approx(by_hand)


@pytest.mark.parametrize(("right", "expected"), [([1, 1, 1], 0.0), ([0, 0, 0], 1.0), ([1, 0, 1], 1 / 3)])
def test_calibration_error_of_the_sure(right: list[int], expected: float) -> None:
    """Certainty falls into the last bin: what is missing to an accuracy of 1 is the error."""
    bins = reliability(torch.tensor([[1.0, 0.0]] * 3), 1 - torch.tensor(right))
    assert calibration_error(bins) == pytest.approx(expected)
    assert bins[0].tolist() == [0] * 14 + [3]


def test_calibration_agrees_with_a_loop_over_bins() -> None:
    """Guo et al. (2017), equations 1 to 3, as written there."""
    probabilities = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    labels = torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    confidence, predicted = (part.numpy() for part in probabilities.max(-1))
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            accuracy = (predicted[inside] == labels.numpy()[inside]).mean()
            expected += inside.sum() / 500 * abs(accuracy - confidence[inside].mean())
    assert calibration_error(reliability(probabilities, labels)) == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- on request


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., Trial]) -> tuple[Row, Outputs]:
    """The last row of a trial on 400 test images less a validation set, with all that can be kept of it."""
    changes = {"validation": {"images": 30, "source": "test"}, "epochs": 3, "unlabelled_ratio": 2}
    for row in run(tiny("co_teaching", changes), Execution("cpu")):
        if row.epoch == 3:
            return row, row.keep(KEPT)
    raise AssertionError


def frame_of(table: object) -> pd.DataFrame:
    return table.to_pandas()  # type: ignore[attr-defined]


def share(rows: pd.DataFrame, column: str) -> float:
    return float((rows["predicted"] == rows[column]).mean())


def test_stored_predictions_reproduce_the_stored_accuracies(trained: tuple[Row, Outputs]) -> None:
    row, kept_outputs = trained
    predictions = frame_of(kept_outputs.predictions)
    by_subset = dict(list(predictions.groupby("subset")))
    assert {name: len(rows) for name, rows in by_subset.items()} == {"test": 330, "labelled": 50, "unlabelled": 100}
    assert share(by_subset["test"], "true") == row.metrics["test", "accuracy"]
    assert share(by_subset["labelled"], "given") == row.metrics["train", "accuracy"]
    assert share(by_subset["labelled"], "true") == row.metrics["oracle", "accuracy"]
    assert by_subset["test"]["given"].isna().all() and by_subset["unlabelled"]["given"].isna().all()
    counts = np.zeros((10, 10))
    np.add.at(counts, (by_subset["test"]["true"].astype(int), by_subset["test"]["predicted"]), 1)
    assert (counts == row.arrays["test", "confusion"].numpy()).all()
    probabilities = np.stack(predictions["probabilities"].tolist())
    assert (probabilities.argmax(-1) == predictions["predicted"]).all()
    assert (probabilities.max(-1) == predictions["confidence"]).all() and probabilities.shape[1] == 10


def test_an_index_is_that_of_the_data_set(trained: tuple[Row, Outputs]) -> None:
    data, predictions = load("digits"), frame_of(trained[1].predictions)
    test = predictions[predictions["subset"] == "test"]
    training = predictions[predictions["subset"] != "test"]
    assert test["index"].is_unique and training["index"].is_unique
    assert (data.test_labels[test["index"]] == test["true"]).all()
    assert (data.train_labels[training["index"]] == training["true"]).all()
    assert predictions["file"].isna().all(), "digits have no names"


def test_beliefs_are_the_method_s_and_the_most_suspected_label_comes_first(trained: tuple[Row, Outputs]) -> None:
    """Co-teaching tells losses: the mean over its two networks puts labels in order."""
    beliefs, predictions = frame_of(trained[1].beliefs), frame_of(trained[1].predictions)
    assert len(beliefs) == 50 and set(beliefs["ranked_by"]) == {"loss"} and set(beliefs["subset"]) == {"labelled"}
    assert beliefs["loss"].dropna().is_monotonic_decreasing and beliefs["loss"].notna().any()
    assert beliefs["loss"].dropna().index.tolist() == list(range(beliefs["loss"].notna().sum())), "no opinion: last"
    assert beliefs["clean"].isna().all() and beliefs["proposed"].isna().all()
    of_labelled = predictions[predictions["subset"] == "labelled"].set_index("index").loc[beliefs["index"]]
    expected = [row[given] for row, given in zip(of_labelled["probabilities"], beliefs["given"], strict=True)]
    assert beliefs["given_probability"].tolist() == expected
    assert 0 < (beliefs["given"] != beliefs["true"]).sum() < 50


def test_a_method_without_beliefs_is_asked_for_its_predictions(tiny: Callable[..., Trial]) -> None:
    *_, row = run(tiny("supervised"), Execution("cpu"))
    beliefs = frame_of(row.keep(["beliefs"]).beliefs)
    assert set(beliefs["ranked_by"]) == {"given_probability"} and beliefs["given_probability"].is_monotonic_increasing
    assert row.keep([]) == Outputs()


def test_proposed_labels_are_the_mean_over_networks() -> None:
    nothing = torch.full((3,), torch.nan)
    first = torch.stack([torch.tensor([0.9, 0.1, 0.0]), torch.tensor([0.2, 0.5, 0.3]), nothing])
    second = torch.stack([torch.tensor([0.0, 0.6, 0.4]), nothing, nothing])
    labels, sure = outputs._proposed(torch.stack([first, second]))
    assert labels is not None and sure is not None
    assert labels.tolist() == [0, 1, None]
    assert sure[:2].tolist() == pytest.approx([0.45, 0.5])


def test_of_many_classes_only_the_most_probable_is_kept(
    tiny: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "MOST_CLASSES", 9)
    *_, row = run(tiny("supervised", {"epochs": 1}), Execution("cpu"))
    predictions = frame_of(row.keep(["predictions"]).predictions)
    assert predictions["probabilities"].isna().all()
    assert share(predictions[predictions["subset"] == "test"], "true") == row.metrics["test", "accuracy"]


def test_names_of_files_go_with_their_images(tiny: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load("digits")
    names = {split: tuple(f"{split}/{i}.png" for i in range(count)) for split, count in (("a", 1437), ("b", 360))}
    named = replace(plain, train_files=names["a"], test_files=names["b"])
    monkeypatch.setattr("lnl.training.draw.datasets.load", lambda name, root: named)
    *_, row = run(tiny("supervised", {"epochs": 1}), Execution("cpu"))
    kept_outputs = row.keep(["predictions", "beliefs"])
    for table in (kept_outputs.predictions, kept_outputs.beliefs):
        rows = frame_of(table)
        folder = rows["subset"].map({"test": "b"}).fillna("a")
        assert (rows["file"] == folder + "/" + rows["index"].astype(str) + ".png").all()


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("average", [None, 0.9])
def test_weights_load_into_the_network_and_predict_the_same(
    average: float | None, tiny: Callable[..., Trial], build: Callable[[Trial], Built], tmp_path: Path
) -> None:
    trial = tiny("supervised", {"method.optimizer.average": average} if average else {})
    *_, row = run(trial, Execution("cpu"))
    store = Store(tmp_path)
    kept.write(store, "study", trial.id, 1, 2, row.keep(["predictions", "weights"]))
    path = tmp_path / "weights" / "study=study" / f"{trial.id}-1.safetensors"
    network = build(trial).method.learner.network.eval()  # type: ignore[attr-defined]
    state = {name.removeprefix("learner."): tensor for name, tensor in load_file(path).items()}
    network.load_state_dict(state)
    assert all((state[name].numpy() == array).all() for name, array in plain_names(kept.read_weights(path)).items())
    predictions = pq.read_table(store.kept_path("predictions", "study", trial.id, 1)).to_pandas()
    _, _, truth = assemble(trial, Execution("cpu"))
    with torch.no_grad():
        probabilities: Tensor = network(truth.test_images).softmax(-1)
    stored = np.stack(predictions.loc[predictions["subset"] == "test", "probabilities"].tolist())
    np.testing.assert_allclose(probabilities.numpy(), stored, rtol=1e-5, atol=1e-6)


def plain_names(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("learner."): array for name, array in weights.items()}


def test_both_networks_of_a_method_are_kept(trained: tuple[Row, Outputs]) -> None:
    assert trained[1].weights is not None
    assert {name.partition(".")[0] for name in trained[1].weights} == {"first", "second"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_file_of_weights_is_told_in_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    kept.write_weights(path, {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)})
    assert kept.read_weights(path)["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    content = bytearray(read_file(path))
    if damage == "flipped":
        content[-1] ^= 1
    path.write_bytes(
        {"cut": bytes(content[:-3]), "flipped": bytes(content), "foreign": b"PK" * 20, "empty": b""}[damage]
    )
    with pytest.raises(
        StorageError, match=r"w\.safetensors cannot be used \(.+\): remove it; --rerun-unkept"
    ) as raised:
        kept.read_weights(path)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------------- tables


def test_tables_have_the_columns_of_the_schema(trained: tuple[Row, Outputs], tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept.write(store, "study", "t", 2, 3, trained[1])
    for kind, schema in (("predictions", PREDICTIONS), ("beliefs", BELIEFS)):
        rows, left_out = store.read(kind, "study")
        assert not left_out and list(rows.columns) == ["study", *schema.names]
        assert set(rows["trial"]) == {"t"} and set(rows["attempt"]) == {2} and set(rows["epoch"]) == {3}
    assert kept.attempts_with(store, "study", KEPT) == {kind: {"t-2"} for kind in KEPT}
    assert kept.lacking("t-1", kept.attempts_with(store, "study", ["weights"])) == ("weights",)
    assert not kept.lacks(store, "study", "t", 2, KEPT) and kept.lacks(store, "other", "t", 2, ["beliefs"])
