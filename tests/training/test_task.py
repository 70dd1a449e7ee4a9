"""The draw of a task: who is labelled, who sees which label, and that no true label of a noisy image gets through."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lnl.data import DataError, Dataset
from lnl.training.draw import prepare, split
from lnl.training.streams import Streams
from lnl.training.task import Noise, Task, Validation, balanced_order, order

CLASSES, PER_CLASS, TEST = 5, 40, 60
CLEAN = Validation()


def dataset(counts=(PER_CLASS,) * CLASSES, unknown=0, test=TEST):
    """Labels in blocks, so that a split which forgets to shuffle is seen; images are not needed to split."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.concatenate([labels, np.full(unknown, -1)])
    test_labels = np.arange(test) % len(counts)
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    names = tuple(f"class {k}" for k in range(len(counts)))
    return Dataset("hand-made", images, labels, images[:test], test_labels, names, (0.5,), (0.5,), False, "0" * 16)


def draw(replicate=0, data=None, **changes):
    wishes = {"labels": 20, "unlabelled_ratio": None, "probe": 0, "validation": CLEAN} | changes
    return split(data or dataset(), Streams(replicate), **wishes)


def counts(data, index):
    return np.bincount(data.train_labels[index], minlength=len(data.class_names))


def parts(found):
    return (found.labelled, found.unlabelled, found.probe, found.validation)


# ------------------------------------------------------------------------------------------------------------ splits

sizes = st.tuples(st.integers(CLASSES, 100), st.integers(0, 30), st.integers(0, 40), st.integers(0, 99))


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_parts_are_balanced_disjoint_and_complete(size):
    labels, probe, held, replicate = size
    data = dataset(unknown=30)
    found = draw(replicate, data, labels=labels, probe=probe, validation=Validation(held))
    assert [len(part) for part in parts(found)] == [labels, 230 - labels - probe - held, probe, held]
    for part in (found.labelled, found.probe, found.validation):
        assert np.ptp(counts(data, part)) <= 1, "class-balanced to one image"
    together = np.concatenate(parts(found))
    assert sorted(together) == list(range(230)), "every image has one role"
    assert set(range(200, 230)) <= set(found.unlabelled), "an image without label is never labelled"
    assert found.test.tolist() == list(range(TEST))


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 60))
def test_more_labels_are_the_same_labels_and_more(size, more):
    labels, probe, held, replicate = size
    assume(labels + more + probe + held <= CLASSES * PER_CLASS)
    few = draw(replicate, labels=labels, probe=probe, validation=Validation(held))
    many = draw(replicate, labels=labels + more, probe=probe, validation=Validation(held))
    assert many.labelled[:labels].tolist() == few.labelled.tolist()
    assert many.probe.tolist() == few.probe.tolist() and many.validation.tolist() == few.validation.tolist()


def test_labels_drawn_at_random_are_nested_and_as_frequent_as_their_classes():
    data = dataset(counts=(10, 190), unknown=30)
    held = {"validation": Validation(20), "probe": 6, "labels_drawn": "random"}
    few, many = draw(3, data, labels=4, **held), draw(3, data, labels=60, **held)
    assert many.labelled[:4].tolist() == few.labelled.tolist()
    assert counts(data, few.validation).tolist() == [10, 10] and not set(few.validation) & set(many.labelled)
    shares = [
        counts(data, draw(replicate, data, labels=20, labels_drawn="random").labelled) for replicate in range(200)
    ]
    assert np.mean(shares, axis=0) == pytest.approx([1, 19], abs=0.25)
    assert min(share[0] for share in shares) == 0, "a class may be missing"
    assert sorted(np.concatenate(parts(many))) == list(range(230))
    assert draw(3, data, labels=2, labels_drawn="random").labelled.shape == (2,), "fewer than there are classes"


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 9), st.floats(0.1, 9), st.integers(0, 99))
def test_a_higher_ratio_has_the_same_unlabelled_images_and_more(one, other, replicate):
    low, high = (draw(replicate, unlabelled_ratio=ratio) for ratio in sorted((one, other)))
    assert len(low.unlabelled) == round(20 * min(one, other)) and len(high.unlabelled) == round(20 * max(one, other))
    assert set(low.unlabelled) <= set(high.unlabelled)
    assert low.labelled.tolist() == high.labelled.tolist()
    assert not set(high.unlabelled) & set(high.labelled)


def test_unlabelled_images_of_a_ratio_are_drawn_from_all_that_are_left():
    data = dataset(unknown=1000)
    drawn = draw(0, data, unlabelled_ratio=30).unlabelled
    share = (data.train_labels[drawn] == -1).mean()
    assert abs(share - 1000 / 1180) < 0.06, "0.0103 is one standard deviation of 600 drawn out of 1,180"


def test_a_replicate_gives_one_split_and_another_gives_another():
    wishes = {"labels": 50, "unlabelled_ratio": 1, "probe": 10, "validation": Validation(20)}
    one, again, other = draw(0, **wishes), draw(0, **wishes), draw(1, **wishes)
    for mine, same, different in zip(parts(one), parts(again), parts(other), strict=True):
        assert mine.tolist() == same.tolist() and set(mine) != set(different)


def test_images_of_one_class_are_shuffled():
    labelled = draw().labelled
    first = labelled[dataset().train_labels[labelled] == 0]
    assert first.tolist() != sorted(first) and max(first) > 10, "not the first four of the file"


def test_all_labels_leave_only_the_unknown_unlabelled():
    data = dataset(unknown=7)
    found = draw(0, data, labels=None, probe=5, validation=Validation(10))
    assert len(found.labelled) == 185 and sorted(found.unlabelled) == list(range(200, 207))


def test_validation_from_the_test_set_leaves_the_rest_as_test():
    found = draw(validation=Validation(12, source="test"))
    assert len(found.validation) == 12 and np.ptp(np.bincount(dataset().test_labels[found.validation])) <= 1
    assert sorted([*found.validation, *found.test]) == list(range(TEST))
    assert found.test.tolist() == sorted(found.test)
    assert found.labelled.tolist() == draw().labelled.tolist(), "the training images stay as they are"
    larger = draw(validation=Validation(24, source="test"))
    assert larger.validation[:12].tolist() == found.validation.tolist()


@pytest.mark.parametrize(
    "wishes, words",
    [
        ({"labels": 201}, ["hand-made has 200", "201"]),
        ({"labels": 150, "probe": 30, "validation": Validation(30)}, ["200", "210", "validation 30", "probe 30"]),
        ({"labels": None, "probe": 100, "validation": Validation(96)}, ["200", "201", "at least one a class"]),
        ({"labels": 4}, ["labels=4", "5 classes", "at least 5"]),
        ({"labels": 100, "unlabelled_ratio": 1.5}, ["unlabelled_ratio=1.5", "150", "100 left"]),
        ({"labels": None, "unlabelled_ratio": 1}, ["unlabelled_ratio=1", "0 left"]),
        ({"labels": 20, "unlabelled_ratio": 0.01}, ["unlabelled_ratio=0.01", "20"]),
        ({"validation": Validation(200)}, ["200", "220", "validation 200"]),
        ({"validation": Validation(60, source="test")}, ["validation.images=60", "60 test images"]),
    ],
)
def test_impossible_wishes_get_one_sentence(wishes, words):
    with pytest.raises(DataError) as error:
        draw(**wishes)
    sentence = str(error.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_a_class_that_runs_out_of_images_is_not_left_without_labels_silently():
    """Two classes, one of three images, all of them taken by the probe set."""
    with pytest.raises(DataError, match="class 1"):
        draw(data=dataset(counts=(100, 3)), labels=10, probe=6)
    assert counts(dataset((100, 3)), draw(data=dataset((100, 3)), labels=10).labelled).tolist() == [7, 3]


# ------------------------------------------------------------------------------------------------- what a task holds


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A data set whose images carry their number in two pixels, behind `prepare`'s front door."""
    folder = tmp_path_factory.mktemp("data")

    def images(first, count):
        pixels = np.random.default_rng(first).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        number = np.arange(first, first + count)
        pixels[:, 0, 0], pixels[:, 0, 1] = number // 256, number % 256
        return pixels

    labels = np.random.default_rng(0).permutation(np.arange(400) % CLASSES)
    arrays = {"x_train": images(0, 400), "y_train": labels, "x_unlabelled": images(400, 50)}
    np.savez(folder / "numbered.npz", **arrays, x_test=images(500, TEST), y_test=np.arange(TEST) % CLASSES, flip=False)
    return folder, np.concatenate([labels, np.full(50, -1)])


@pytest.fixture
def make(source):
    def call(replicate=0, **changes):
        wishes = {
            "labels": 100,
            "unlabelled_ratio": None,
            "probe": 0,
            "validation": CLEAN,
            "noise_settings": Noise("symmetric", 0.4),
            "epochs": 3,
            "steps": None,
        } | changes
        return prepare("npz:numbered.npz", Streams(replicate), torch.device("cpu"), source[0], **wishes)

    return call


def number(images):
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()).tolist()


def test_labels_stay_with_their_images(make, source):
    seen, truth = make(probe=20, validation=Validation(30), noise_settings=Noise())
    names = np.array(number(seen.images))
    assert len(set(names)) == len(names) == 100 + 300 + 20
    assert truth.labels.tolist() == source[1][names].tolist()
    trusted = torch.cat([seen.labelled, seen.probe])
    assert seen.labels[trusted].tolist() == truth.labels[trusted].tolist()
    assert sorted([*seen.labelled.tolist(), *seen.unlabelled.tolist(), *seen.probe.tolist()]) == list(range(420))
    assert set(names[seen.unlabelled]) >= set(range(400, 450))


def test_no_true_label_of_an_image_that_is_not_trusted_is_in_a_task(make):
    """With every label wrong, whatever in a task equals the truth is a leak."""
    seen, truth = make(noise_settings=Noise("symmetric", 1.0), probe=20)
    assert (seen.labels[seen.labelled] != truth.labels[seen.labelled]).all()
    assert (seen.labels[seen.unlabelled] == -1).all() and (truth.labels[seen.unlabelled] >= 0).any()
    assert {field.name for field in dataclasses.fields(Task)} == {
        "images", "labels", "labelled", "unlabelled", "probe", "classes", "epochs", "steps", "views",
    }  # fmt: skip


def test_the_realised_noise_is_written_down(make):
    seen, truth = make(noise_settings=Noise("symmetric", 0.4))
    given_labels, true = seen.labels[seen.labelled], truth.labels[seen.labelled]
    assert truth.facts["noise_realised"] == 0.4 == float((given_labels != true).double().mean())
    matrix = np.zeros((CLASSES, CLASSES))
    np.add.at(matrix, (true.numpy(), given_labels.numpy()), 1)
    np.testing.assert_allclose(truth.facts["transition"], matrix / matrix.sum(1, keepdims=True))
    assert truth.facts["unlabelled"] == 350 and truth.facts["labels"] == 100


def test_evaluation_images_are_normalised_and_in_order(make, source):
    _, truth = make(validation=Validation(12, source="test"))
    raw = np.load(source[0] / "numbered.npz")
    mean, std = raw_moments(raw)
    rest = truth.test_images * std * 255 + mean * 255
    names = (rest[:, 0, 0, 0].round() * 256 + rest[:, 0, 0, 1].round()).long() - 500
    assert len(names) == 48 and truth.test_labels.tolist() == (names % CLASSES).tolist()
    held = truth.validation_images * std * 255 + mean * 255
    held_names = (held[:, 0, 0, 0].round() * 256 + held[:, 0, 0, 1].round()).long() - 500
    assert truth.validation_labels.tolist() == (held_names % CLASSES).tolist()
    assert sorted([*names.tolist(), *held_names.tolist()]) == list(range(TEST))
    assert truth.test_images.dtype == torch.float32


def raw_moments(raw):
    pixels = np.concatenate([raw["x_train"], raw["x_unlabelled"]]) / 255
    return pixels.mean(), pixels.std()


def test_what_a_method_does_moves_no_draw(make):
    """Hashes are those of replicate, labels and noise; what else a trial says leaves them alone."""
    hashes = ("noise_hash", "split_hash", "data_hash")
    _, base = make()
    assert {name: base.facts[name] for name in hashes} == {name: make()[1].facts[name] for name in hashes}
    assert make(epochs=9, steps=7)[1].facts == base.facts
    noisier = make(noise_settings=Noise("symmetric", 0.2))[1].facts
    assert noisier["split_hash"] == base.facts["split_hash"] and noisier["noise_hash"] != base.facts["noise_hash"]
    smaller = make(unlabelled_ratio=1)[1].facts
    assert {name: smaller[name] for name in hashes} == {name: base.facts[name] for name in hashes}, "still a pair"
    assert smaller["unlabelled_hash"] != base.facts["unlabelled_hash"]
    for validation in (Validation(12, "test"), Validation(12, "test", "noisy")):
        assert make(validation=validation)[1].facts["noise_hash"] == base.facts["noise_hash"]
    other = make(replicate=1)[1].facts
    assert other["noise_hash"] != base.facts["noise_hash"] and other["split_hash"] != base.facts["split_hash"]
    assert other["data_hash"] == base.facts["data_hash"]


def test_the_noise_of_few_labels_is_that_of_many(make):
    """Not exact: each label flips by its own number, so that the first hundred are the same."""
    few, many = (given_to(*make(labels=n, noise_settings=Noise("symmetric", 0.4, exact=False))) for n in (50, 100))
    assert len(few) == 50 and len(many) == 100 and few.items() <= many.items()


def given_to(seen, _):
    """Number of a labelled image -> the label it was given."""
    return dict(zip(number(seen.images[seen.labelled]), seen.labels[seen.labelled].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "asymmetric_block", "pair", "instance"])
def test_every_kind_of_noise_reaches_the_labels(make, kind):
    seen, truth = make(noise_settings=Noise(kind, 0.4))
    wrong = seen.labels[seen.labelled] != truth.labels[seen.labelled]
    assert float(wrong.double().mean()) == truth.facts["noise_realised"] == pytest.approx(0.4)


@pytest.mark.parametrize("source_of_validation", ["train", "test"])
def test_noisy_validation_has_noise_of_its_own(make, source_of_validation):
    clean_seen, clean = make(validation=Validation(40, source_of_validation, "clean"))
    noisy_seen, noisy = make(validation=Validation(40, source_of_validation, "noisy"))
    assert torch.equal(clean.validation_images, noisy.validation_images)
    assert float((clean.validation_labels != noisy.validation_labels).double().mean()) == 0.4
    assert torch.equal(clean_seen.labels, noisy_seen.labels)
    assert torch.equal(clean.test_labels, noisy.test_labels)
    no_noise = make(validation=Validation(40, source_of_validation, "noisy"), noise_settings=Noise())[1]
    assert torch.equal(no_noise.validation_labels, clean.validation_labels)


def test_human_labels_are_those_of_the_same_images(make, source, monkeypatch):
    people = np.where(source[1] >= 0, (source[1] + (np.arange(450) % 3 == 0)) % CLASSES, -1)
    monkeypatch.setattr("lnl.data.given_labels", lambda data, column, root: people)
    human = Noise("human", column="worse")
    seen, truth = make(noise_settings=human, validation=Validation(30, labels="noisy"))
    names = number(seen.images[seen.labelled])
    assert seen.labels[seen.labelled].tolist() == people[names].tolist()
    assert truth.facts["noise_realised"] == pytest.approx(np.mean([name % 3 == 0 for name in names]))
    assert 0 < float((truth.validation_labels != make(validation=Validation(30))[1].validation_labels).sum()) < 30
    with pytest.raises(DataError, match=r"training images only.*'train'"):
        make(noise_settings=human, validation=Validation(30, "test", "noisy"))


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("none", 0.1), "kind 'none' takes no rate"),
        (("human", 0.1, True, False, "worse"), "kind 'human' takes no rate"),
        (("human",), "column"),
        (("symmetric", 0.1, True, False, "worse"), "column"),
        (("pair", 0.1, True, True), "include_true"),
        (("symmetric", 1.1), "less than or equal to 1"),
        (("symmetric", -0.1), "greater than or equal to 0"),
        (("symetric", 0.1), "'symmetric'"),
    ],
)
def test_noise_that_cannot_be_is_refused_when_it_is_declared(arguments, word):
    with pytest.raises(ValueError, match=word):
        Noise(*arguments)


# ------------------------------------------------------------------------------------------------------------ batches


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 12), st.integers(0, 99))
def test_every_image_is_drawn_equally_often(size, batch_size, steps, seed):
    pool = torch.arange(size) * 3 + 1
    batches = order(pool, batch_size, steps, torch.Generator().manual_seed(seed))
    assert batches.shape == (steps, batch_size)
    often = torch.bincount(batches.flatten(), minlength=3 * size + 1)[pool]
    assert int(often.sum()) == steps * batch_size and int(often.max() - often.min()) <= 1
    again = order(pool, batch_size, steps, torch.Generator().manual_seed(seed))
    assert torch.equal(batches, again)


def test_passes_are_shuffled_each_by_itself():
    pool = torch.arange(50)
    batches = order(pool, 10, 10, torch.Generator().manual_seed(0))
    first, second = batches[:5].flatten(), batches[5:].flatten()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert len({tuple(first.tolist()), tuple(second.tolist()), tuple(range(50))}) == 3


def test_places_in_a_pass_are_uniform():
    """Each of four images is first in a quarter of 4,000 passes, to 5 standard deviations."""
    batches = order(torch.arange(4), 4, 4000, torch.Generator().manual_seed(0))
    share = torch.bincount(batches[:, 0], minlength=4) / 4000
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_an_empty_pool_gets_a_sentence():
    with pytest.raises(DataError, match="unlabelled"):
        order(torch.arange(0), 4, 2, torch.Generator())


def test_steps_per_epoch_pass_once_over_the_larger_part(make):
    seen, _ = make()
    assert (len(seen.labelled), len(seen.unlabelled)) == (100, 350)
    assert seen.steps_per_epoch(64) == 6 and seen.steps_per_epoch(50) == 7  # ceil(350 / 64), 350 / 50
    assert make(unlabelled_ratio=0.5)[0].steps_per_epoch(64) == 2  # ceil(100 / 64)
    assert make(steps=11)[0].steps_per_epoch(64) == 11


def test_views_are_drawn_from_the_given_stream(make):
    seen, _ = make()
    index = seen.labelled[:8]
    for name in ("weak", "contrastive", "strong"):
        first, again, other = (seen.view(index, name, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert first.shape == (8, 1, 8, 8) and first.dtype == torch.float32
    plain = seen.view(index, "none", torch.Generator())
    assert torch.equal(plain, seen.view(index, "none", torch.Generator().manual_seed(3)))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 24), st.integers(1, 9), st.integers(0, 99))
def test_balanced_batches(size, classes, batch_size, steps, seed):
    """Every batch has each class equally often or once more; within a class, every image is drawn equally often."""
    labels = torch.randint(classes, (size,), generator=torch.Generator().manual_seed(seed))
    pool, present = 3 * torch.arange(size) + 1, labels.unique()
    batches = balanced_order(pool, labels, batch_size, steps, torch.Generator().manual_seed(seed))
    assert batches.shape == (steps, batch_size)
    drawn = labels[(batches - 1) // 3]
    counts = torch.stack([(drawn == one).sum(-1) for one in present])
    assert (counts.max(0).values - counts.min(0).values <= (batch_size % len(present) > 0)).all()
    often = torch.bincount(batches.flatten(), minlength=3 * size + 1)[pool]
    assert all(often[labels == one].max() - often[labels == one].min() <= 1 for one in present)
