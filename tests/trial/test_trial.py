"""One trial: what its id depends on, the sentence for every wrong setting, and the rows that it gives."""

import copy
import hashlib
import json
import math
import pickle
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lnl import methods
from lnl.data import DataError
from lnl.storage.schema import TRIALS
from lnl.training.task import Noise, Origin, Task, Truth
from lnl.trial import evaluation
from lnl.trial.config import Trial, parse
from lnl.trial.divergence import Diverged
from lnl.trial.evaluation import evaluate
from lnl.trial.run import Execution, run

PACKAGE = Path(__file__).parents[2] / "lnl"
SEMANTIC = {"noise.kind": "semantic", "noise.teacher": {"labels": 250}}
HUMAN = {"noise.kind": "human", "noise.column": "worse"}
NOISE = {"noise.kind": "symmetric", "noise.rate": 0.4}
# Every field of a trial of `supervised` -> what changes it, and what it needs beside it.
FIELDS = {
    "method.name": ({"method": "mixmatch"}, {}),
    "method.batch_size": ({"method.batch_size": 32}, {}),
    "method.augmentation": ({"method.augmentation": "strong"}, {}),
    "method.optimizer.kind": ({"method.optimizer.kind": "adamw"}, {}),
    "method.optimizer.learning_rate": ({"method.optimizer.learning_rate": 0.1}, {}),
    "method.optimizer.momentum": ({"method.optimizer.momentum": 0.5}, {}),
    "method.optimizer.nesterov": ({"method.optimizer.nesterov": False}, {}),
    "method.optimizer.weight_decay": ({"method.optimizer.weight_decay": 0.0}, {}),
    "method.optimizer.schedule": ({"method.optimizer.schedule": "step"}, {}),
    "method.optimizer.milestones": ({"method.optimizer.milestones": [0.3]}, {}),
    "method.optimizer.factor": ({"method.optimizer.factor": 0.2}, {}),
    "method.optimizer.first_cycle": ({"method.optimizer.first_cycle": 0.1}, {}),
    "method.optimizer.warm_up": ({"method.optimizer.warm_up": 0.1}, {}),
    "method.optimizer.average": ({"method.optimizer.average": 0.99}, {}),
    "method.weak.shift": ({"method.weak.shift": 0.0625}, {}),
    "method.weak.padding": ({"method.weak.padding": "zeros"}, {}),
    "method.strong.rand_augment": ({"method.strong.rand_augment": "paper"}, {}),
    "method.contrastive.jitter": ({"method.contrastive.jitter": 1.0}, {}),
    "dataset": ({"dataset": "digits"}, {}),
    "network": ({"network": "small_convnet"}, {}),
    "weights": ({"weights": "imagenet"}, {}),
    "resize": ({"resize": 64}, {}),
    "labels_drawn": ({"labels_drawn": "random"}, {"labels": 100}),
    "init_from": ({"init_from": {"method": "simclr"}}, {}),
    "labels": ({"labels": 250}, {}),
    "unlabelled_ratio": ({"unlabelled_ratio": 5}, {}),
    "noise.kind": ({"noise.kind": "pair"}, NOISE),
    "noise.rate": ({"noise.rate": 0.2}, NOISE),
    "noise.exact": ({"noise.exact": False}, NOISE),
    "noise.include_true": ({"noise.include_true": True}, NOISE),
    "noise.column": ({"noise.column": "aggre"}, HUMAN),
    "noise.teacher": ({"noise.teacher": {"labels": 500}}, SEMANTIC),
    "validation.images": ({"validation.images": 100}, {}),
    "validation.source": ({"validation.source": "test"}, {"validation.images": 100}),
    "validation.labels": ({"validation.labels": "noisy"}, {"validation.images": 100}),
    "vector_views.weak_dropout": ({"vector_views.weak_dropout": 0.3}, {}),
    "vector_views.strong_dropout": ({"vector_views.strong_dropout": 0.3}, {}),
    "vector_views.weak_noise": ({"vector_views.weak_noise": 0.3}, {}),
    "vector_views.strong_noise": ({"vector_views.strong_noise": 0.3}, {}),
    "probe": ({"probe": 10}, {}),
    "epochs": ({"epochs": 3}, {}),
    "steps": ({"steps": 3}, {}),
    "precision": ({"precision": "bfloat16"}, {}),
    "replicate": ({"replicate": 1}, {}),
}


@pytest.fixture
def base():
    return Trial(method="supervised")


def leaves(settings, prefix=""):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


# ---------------------------------------------------------------------------------------------------------- identity


def test_the_table_of_fields_is_complete(base):
    assert sorted(FIELDS) == sorted(leaves(base.model_dump(mode="json")))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_part_of_the_id(base, field):
    change, beside = FIELDS[field]
    before = base.override(beside)
    after = before.override(change)
    assert after.id != before.id
    assert re.fullmatch("[0-9a-f]{12}", after.id)
    assert parse(json.loads(json.dumps(after.model_dump(mode="json")))).id == after.id, "an id survives its storage"


def test_one_change_of_every_field_gives_as_many_ids(base):
    ids = {base.override({**beside, **change}).id for change, beside in FIELDS.values()}
    assert len(ids) == len(FIELDS)


def test_the_id_is_that_of_what_differs_from_the_defaults(base):
    """So a new field with a default moves no id of a stored result."""

    def expected(identity):
        return hashlib.sha256(identity.encode()).hexdigest()[:12]

    assert base.id == expected('{"method":{"name":"supervised"}}')
    changed = base.override(
        {"noise.kind": "symmetric", "noise.rate": 0.4, "labels": 250, "method.optimizer.average": 0.9}
    )
    assert changed.id == expected(
        '{"labels":250,"method":{"name":"supervised","optimizer":{"average":0.9}},"noise":{"kind":"symmetric","rate":0.4}}'
    )
    assert (
        changed.override({"noise.kind": "none", "noise.rate": 0, "labels": None, "method": "supervised"}).id == base.id
    )


def test_where_and_how_fast_a_trial_runs_is_no_part_of_it():
    assert not {field.name for field in fields(Execution)} & set(Trial.model_fields)


def test_the_spelling_of_a_value_does_not_matter(base):
    def same(one, other):
        return base.override(one).id == base.override(other).id

    assert same({"labels": 250}, {"labels": 250.0}) and same({"labels": 250}, {"labels": "250"})
    assert same({"unlabelled_ratio": 1}, {"unlabelled_ratio": 1.0})
    assert same({"method.optimizer.weight_decay": 0}, {"method.optimizer.weight_decay": 0.0})
    assert same({**NOISE, "noise.rate": 0.4}, {**NOISE, "noise.rate": 4e-1})
    assert same({"method.optimizer.milestones": (0.3, 0.6)}, {"method.optimizer.milestones": [0.3, 0.6]})
    assert same(NOISE, dict(reversed(NOISE.items()))) and same(NOISE, {"noise": {"rate": 0.4, "kind": "symmetric"}})
    assert (
        Trial(method="supervised", noise=Noise("symmetric", 0.4), labels=9).id
        == base.override({**NOISE, "labels": 9}).id
    )
    assert (
        parse({"labels": 9, "method": {"augmentation": "weak", "name": "supervised"}}).id
        == base.override({"labels": 9}).id
    )


@given(
    st.dictionaries(st.sampled_from(["epochs", "steps", "probe", "replicate", "labels"]), st.integers(2, 9)),
    st.randoms(),
)
def test_neither_the_order_of_changes_nor_of_calls_matters(changes, random):
    base = Trial(method="supervised")
    expected = base.override(changes)
    shuffled = list(changes.items())
    random.shuffle(shuffled)
    assert base.override(dict(shuffled)) == expected
    for key, value in shuffled:
        base = base.override({key: value})
    assert base == expected and base.id == expected.id and hash(base) == hash(expected)


def test_a_trial_is_frozen(base):
    with pytest.raises(ValueError, match="frozen"):
        base.labels = 3
    base.override({"labels": 3, "method.batch_size": 8})
    assert base == Trial(method="supervised")


# --------------------------------------------------------------------------------------------------------- overriding


def test_dotted_keys_reach_every_level(base):
    changed = base.override(
        {"method.optimizer.learning_rate": 0.5, "noise.kind": "pair", "noise.rate": 0.2, "labels": 40}
    )
    assert changed.method.optimizer.learning_rate == 0.5 and changed.labels == 40
    assert changed.noise == Noise("pair", 0.2)
    assert changed.method.optimizer.nesterov, "the other fields stay"


def test_a_new_method_starts_from_its_own_defaults_whatever_the_order(base):
    changed = base.override({"method.batch_size": 8, "method.optimizer.learning_rate": 0.5})
    expected = Trial(method={"name": "mixmatch", "alpha": 0.5})
    for changes in ({"method": "mixmatch", "method.alpha": 0.5}, {"method.alpha": 0.5, "method": "mixmatch"}):
        assert changed.override(changes) == expected
    assert changed.override({"method": {"name": "mixmatch", "alpha": 0.5}}) == expected
    assert changed.override({"method.name": "mixmatch", "method.alpha": 0.5}) == expected
    assert changed.override({"method": "supervised"}) == base


def test_pretraining_comes_on_top_of_the_epochs():
    trial = Trial(method={"name": "robmix", "topology": "pretrain_then_ssl", "pretrain_epochs": 5}, epochs=7)
    assert trial.total_epochs == 12 and Trial(method="supervised", epochs=7).total_epochs == 7


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lables": 3}, ["'lables'", "did you mean 'labels'?"]),
        ({"noise.rat": 0.1}, ["'noise.rat'", "did you mean 'noise.rate'?"]),
        ({"validation.image": 3}, ["did you mean 'validation.images'?"]),
        ({"method.batchsize": 3}, ["'method.batchsize'", "did you mean 'method.batch_size'?"]),
        ({"method.optimizer.learningrate": 3}, ["did you mean 'method.optimizer.learning_rate'?"]),
        ({"method": "mixmatch", "method.temprature": 1}, ["did you mean 'method.temperature'?"]),
        ({"zzz": 1}, ["'zzz'", "dataset, epochs, init_from"]),
        ({"method.zzz": 1}, ["'method.zzz'", "augmentation, batch_size"]),
        ({"noise.zzz": 1}, ["'noise.zzz'", "column, exact"]),
        ({"method.optimizer.zzz": 1}, ["'method.optimizer.zzz'", "average, factor"]),
        ({"method": "mixmach"}, ["'mixmach'", "did you mean 'mixmatch'?"]),
        ({"method": "zzz"}, ["'zzz'", ", ".join(methods.names())]),
        ({"method": 5}, ["method", "name"]),
        ({"method": None}, ["method", "name"]),
        ({"method": {"name": 5}}, ["5"]),
        ({"method": {"batch_size": 5}}, ["method", "name"]),
        ({"labels": 1}, ["labels", "2", "not 1"]),
        ({"labels": "many"}, ["labels", "integer", "'many'"]),
        ({"labels": 2.5}, ["labels", "2.5"]),
        ({"labels.x": 3}, ["labels"]),
        ({"epochs": 0}, ["epochs", "not 0"]),
        ({"replicate": -1}, ["replicate", "not -1"]),
        ({"unlabelled_ratio": 0}, ["unlabelled_ratio", "not 0"]),
        ({"unlabelled_ratio": math.inf}, ["unlabelled_ratio", "finite"]),
        ({"precision": "float16"}, ["precision", "'bfloat16'", "'float16'"]),
        ({"noise.kind": "symetric"}, ["noise.kind", "'symmetric'", "'symetric'"]),
        ({"noise.rate": 0.1}, ["noise", "0.1", "kind 'none'"]),
        ({"noise.kind": "pair", "noise.rate": 1.5}, ["noise.rate", "1.5"]),
        ({"noise.kind": "pair", "noise.rate": math.nan}, ["noise.rate", "nan"]),
        ({"noise": "symmetric"}, ["noise", "'symmetric'"]),
        ({"method.optimizer.learning_rate": -1}, ["method.optimizer.learning_rate", "-1"]),
        ({"method.optimizer.learning_rate": math.inf}, ["method.optimizer.learning_rate", "finite"]),
        ({"method.optimizer": "sgd"}, ["method.optimizer", "'sgd'"]),
        ({"method": "robmix", "method.sync": "alternate"}, ["method", "sync alternate needs optimizers two_owner"]),
        ({"dataset": 5}, ["dataset", "5"]),
        ({"dataset": "cifar1O"}, ["dataset", "'cifar1O'", "cifar10, cifar100"]),
        ({"network": "wide_resnet"}, ["network", "'wide_resnet'", "wide_resnet28_2"]),
    ],
)
def test_a_wrong_setting_gets_one_sentence(base, changes, words):
    with pytest.raises(ValueError) as error:
        base.override(changes)
    sentence = str(error.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence and "pydantic" not in sentence and "Value error" not in sentence, sentence
    assert re.search(r"[^.?][.?]$", sentence), f"ends with one full stop or question mark: {sentence}"


def test_a_trial_without_a_method_gets_the_sentence_too():
    with pytest.raises(ValueError, match=r"^method[^{]*\w\.$"):
        parse({})
    with pytest.raises(ValueError, match=r"did you mean 'labels'\?$"):
        parse({"method": "supervised", "lables": 3})


# --------------------------------------------------------------------------------------------------------------- rows


def test_a_run_gives_one_row_per_epoch(tiny):
    trial = tiny("supervised", {"validation.images": 20, "epochs": 3})
    torch.manual_seed(1)
    rows = list(run(trial))
    assert [row.epoch for row in rows] == [1, 2, 3] and [row.step for row in rows] == [3, 6, 9]
    assert 0 < rows[0].seconds < rows[1].seconds < rows[2].seconds
    every = {
        ("train", "loss"),
        ("train", "accuracy"),
        ("oracle", "accuracy"),
        ("oracle", "memorised"),
        *((split, metric) for split in ("test", "validation") for metric in ("accuracy", "cross_entropy")),
    }
    assert set(rows[0].metrics) == set(rows[1].metrics) == every
    of_the_last = {("test", "calibration_error"), ("test", "neighbour_accuracy"), ("oracle", "neighbour_accuracy")}
    assert set(rows[2].metrics) == every | of_the_last
    for row in rows:
        assert all(type(value) is float and math.isfinite(value) for value in row.metrics.values())
        assert all(
            0 <= value <= 1 for (_, name), value in row.metrics.items() if "accuracy" in name or name == "memorised"
        )

    facts = rows[0].facts
    assert facts == rows[2].facts and set(facts) <= set(TRIALS.names), "every fact has its column"
    assert facts["noise_realised"] == 0.4 and facts["unlabelled"] == 1437 - 50 - 20
    assert len(facts["transition"]) == 10 and [sum(line) for line in facts["transition"]] == pytest.approx([1] * 10)
    assert all(
        re.fullmatch("[0-9a-f]{16}", facts[name]) for name in ("data_hash", "noise_hash", "split_hash", "init_hash")
    )

    torch.manual_seed(2)  # whatever the global generator does
    assert [row.metrics for row in run(trial)] == [row.metrics for row in rows]
    other = next(run(trial.override({"replicate": 1})))
    for name in ("noise_hash", "split_hash", "init_hash"):
        assert other.facts[name] != facts[name]


def test_what_is_not_there_is_not_measured(tiny):
    metrics = [row.metrics for row in run(tiny("supervised", {"noise.kind": "none", "noise.rate": 0}))][-1]
    assert ("oracle", "memorised") not in metrics and not [key for key in metrics if key[0] == "validation"]
    assert metrics["train", "accuracy"] == metrics["oracle", "accuracy"]
    assert metrics["test", "neighbour_accuracy"] == metrics["oracle", "neighbour_accuracy"]


def test_arms_of_a_replicate_share_their_draws(tiny):
    one, other = (next(run(tiny(method))).facts for method in ("supervised", "mixmatch"))
    for name in ("data_hash", "noise_hash", "split_hash", "init_hash", "transition"):
        assert one[name] == other[name]


def test_a_run_goes_on_where_a_snapshot_was_taken(tiny):
    trial = tiny("supervised", {"epochs": 3})
    snapshots, whole = [], []
    for row in run(trial):
        snapshots.append(copy.deepcopy(row.snapshot()))
        whole.append(row.metrics)
    rest = list(run(trial, state={**snapshots[0], "seconds": 1000.0}))
    assert [row.metrics for row in rest] == whole[1:] and [row.step for row in rest] == [6, 9]
    assert 1000 < rest[0].seconds < rest[1].seconds < 1100, "the time of the earlier part counts"
    assert list(run(trial, state=snapshots[-1])) == []


def test_divergence_is_an_outcome_of_its_own_with_a_sentence(tiny):
    seen = []
    with pytest.raises(Diverged) as error:
        for row in run(tiny("supervised", {"method.optimizer.learning_rate": 1e6, "epochs": 9, "steps": 9})):
            seen.append(row.epoch)
    assert seen == list(range(1, len(seen) + 1)) and len(seen) < 9
    sentence = str(error.value)
    assert sentence.startswith("loss") and f"epoch {len(seen) + 1}" in sentence and "learning rate" in sentence
    assert not isinstance(error.value, ValueError), "no usage error"


@pytest.mark.parametrize("breakdown", [FloatingPointError("no finite losses"), torch.linalg.LinAlgError("singular")])
def test_numbers_that_break_down_inside_a_method_are_divergence_too(tiny, monkeypatch, breakdown):
    def broken(self, epoch):
        raise breakdown

    monkeypatch.setattr(methods.load("supervised").Method, "train_epoch", broken)
    with pytest.raises(Diverged, match=rf"epoch 1 \({breakdown}\): lower the learning rate\."):
        next(run(tiny("supervised")))


def test_missing_data_gets_its_sentence(tiny, tmp_path):
    with pytest.raises(DataError, match=r"'nowhere\.npz'"):
        next(run(tiny("supervised", {"dataset": "npz:nowhere.npz"}), Execution(data=tmp_path)))
    with pytest.raises(DataError, match="2000"):
        next(run(tiny("supervised", {"labels": 2000})))


def test_what_a_method_asks_of_its_trial_is_no_error_of_the_code(tiny):
    with pytest.raises(DataError, match="A warm-up of 10 epochs leaves none of 3 for DivideMix"):
        next(run(tiny("dividemix", {"epochs": 3, "method.warm_up": 10})))


def test_a_method_that_needs_unlabelled_images_says_so(tiny):
    with pytest.raises(DataError, match="unlabelled"):
        next(run(tiny("mixmatch", {"labels": None})))


class Known:
    """Class 1 where the first pixel is bright; features are the pixels."""

    def predict(self, images: Tensor) -> Tensor:
        bright = images[:, 0, 0, 0] > 0.5
        return torch.where(bright[:, None], torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]))

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_what_is_measured_is_what_its_name_says(monkeypatch):
    """Six labelled images, bright and dark in turn, worked out by hand; the test images are a bright and a dark one."""
    bright, dark = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    images = torch.stack([bright, dark] * 3)
    given_labels, true = torch.tensor([0, 1, 1, 0, 0, 0]), torch.tensor([1, 0, 0, 0, 1, 0])  # guessed: 1 0 1 0 1 0
    seen = Task(
        images=images, labels=given_labels, labelled=torch.arange(6), unlabelled=torch.arange(0), probe=torch.arange(0),
        classes=2, epochs=1, steps=None, views={"none": lambda part, generator: part},
    )  # fmt: skip
    truth = Truth(
        labels=true,
        test_images=torch.stack([bright, dark]),
        test_labels=torch.tensor([1, 1]),
        validation_images=images[:0],
        validation_labels=torch.arange(0),
        facts={},
        images=Origin(np.arange(6)),
        tested=Origin(np.arange(2)),
    )
    always = {
        ("test", "accuracy"): 0.5,  # a tie of probabilities goes to class 0
        ("test", "cross_entropy"): pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2),
        ("train", "accuracy"): 0.5,  # images 2, 3 and 5
        ("oracle", "accuracy"): pytest.approx(5 / 6),  # all but image 2
        ("oracle", "memorised"): 0.25,  # of the wrong labels 0, 1, 2 and 4 the guess repeats that of 2
    }
    assert evaluate(Known(), seen, truth, last=False) == (always, {})
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "SAMPLE", 3)  # images 0, 2 and 4: given 0 1 0, true 1 0 1, guessed 1 1 1
        metrics, _ = evaluate(Known(), seen, truth, last=False)
        assert metrics["train", "accuracy"] == metrics["oracle", "memorised"] == pytest.approx(1 / 3)
        assert metrics["oracle", "accuracy"] == pytest.approx(2 / 3)
    metrics, arrays = evaluate(Known(), seen, truth, last=True)
    assert metrics == {
        **always,
        ("test", "calibration_error"): 0.375,  # confidence 0.75 and right, 0.5 and wrong
        ("test", "neighbour_accuracy"): 0.0,  # given labels of the bright ones: 0 1 0, of the dark ones: 1 0 0
        ("oracle", "neighbour_accuracy"): 0.5,  # true labels of the bright ones: 1 0 1, of the dark ones: 0 0 0
    }
    assert arrays["test", "confusion"].tolist() == [[0, 0], [1, 1]], "both are of class 1, and one is seen as class 0"
    images, right, confidence = arrays["test", "reliability"]
    assert images.nonzero().flatten().tolist() == [7, 11] and right.nonzero().flatten().tolist() == [11]
    assert confidence[[7, 11]].tolist() == [0.5, 0.75] and confidence.isnan().sum() == 13


def test_execution_finds_its_device():
    assert Execution("cpu").torch_device() == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Execution().torch_device().type == expected


def test_a_copy_has_an_id_of_its_own():
    """The id is kept with a trial once it is computed."""
    trial = Trial(method="supervised", dataset="digits", network="small_convnet", labels=100)
    assert "id" not in trial.model_dump() and trial.id == pickle.loads(pickle.dumps(trial)).id
    other = trial.model_copy(update={"replicate": 1})
    assert other.id != trial.id and other.id == trial.override({"replicate": 1}).id
