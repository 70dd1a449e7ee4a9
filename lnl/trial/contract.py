"""The contract of all methods, as checks that train for a few steps: `lnl check` runs them, and so do the tests.

Each check returns nothing where the contract is kept, and raises `Broken` with a sentence where it is not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args, get_origin

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from lnl import methods, networks
from lnl.methods import Method, has_beliefs
from lnl.space import Choice
from lnl.training.learner import Optimizer
from lnl.training.task import Noise, Task, Truth
from lnl.training.views import ContrastiveView, StrongView, WeakView
from lnl.trial.config import Trial
from lnl.trial.divergence import Diverged
from lnl.trial.reachable import leaves, tells
from lnl.trial.run import Execution, Row, assemble, draw, run, train

AT_MOST = {"batch_size": 16, "warm_up": 1, "pretrain_epochs": 1, "hidden": 128, "projector_width": 128}  # in `small`
CPU = Execution(device="cpu")
# Tests of the learner and of views show that each field changes training: a method need only learn by the rate and
# predict by the average.
OPTIMIZER_FIELDS = ("learning_rate", "average")
VIEWS = (WeakView, StrongView, ContrastiveView)
LARGEST_RATE = 1e30  # at which every training by gradients diverges


class Broken(Exception):
    """A method breaks its contract; the message says how, and what to do."""


def small(method: str, changes: Mapping[str, object] | None = None) -> Trial:
    """The smallest trial of a method that trains: two epochs of three steps on 50 digits, 40 % of their labels wrong.

    Methods that use one get a probe of 20.
    """
    module = methods.load(method)
    fields = module.Config.model_fields
    reduced = {f"method.{key}": size for key, size in AT_MOST.items() if key in fields and fields[key].default > size}
    base = Trial(
        method=methods.configure(method),
        dataset="digits",
        network="small_convnet",
        labels=50,
        noise=Noise("symmetric", 0.4),
        probe=20 if "probe" in module.USES else 0,
        epochs=2,
        steps=3,
    )
    return base.override({**reduced, **(changes or {})})


# ------------------------------------------------------------------------------------------------------- configuration


def fields(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """Dotted name, type and value of every field that may change training."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from fields(value, f"{prefix}{name}.")
        elif name != "name":
            yield f"{prefix}{name}", field.annotation, value


def alternatives(name: str, kind: object, value: object) -> list[object]:
    """Other values that a field can take: every other choice, or one other number.  Raises `Broken` for other kinds."""
    if get_origin(kind) is Literal:
        return [choice for choice in get_args(kind) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value / 2 if value else 0.5]
    if value is None:
        return [1.0]  # a threshold that is off by default
    if isinstance(value, tuple) and value and all(isinstance(entry, int | float) for entry in value):
        return [tuple(entry / 2 for entry in value)]
    raise Broken(f"no other value of `{name}` than {value!r} can be told: make it a number, a bool or a Literal.")


def search_holds_defaults(method: str) -> None:
    """Every range of `SEARCH` belongs to a field, holds its default, and can be asked for at its ends."""
    space = methods.load(method).SEARCH
    paper = Trial(method=methods.configure(method))
    for key, one in space.items():
        trial = paper if key.startswith("method.") else small(method)
        try:
            default = trial.value(key)
            for end in one.values if isinstance(one, Choice) else (one.low, one.high):
                small(method, {**{parent: values[0] for parent, values in one.when.items()}, key: end})
        except ValueError as error:
            raise Broken(f"SEARCH, `{key}`: {error}") from None
        if default not in one:
            raise Broken(f"SEARCH, `{key}`: the range does not hold the default {default!r}: widen it.")


@cache
def outcome(trial: Trial) -> list[dict[str, object]]:
    """By epoch, what a change of training must change: losses, measures on the test images, size of the network."""
    return list(_outcome(trial))


def _outcome(trial: Trial) -> Iterator[dict[str, object]]:
    for row in run(trial, CPU):
        counted = {key: value for key, value in row.metrics.items() if key[0] == "test" or key[1] == "loss"}
        yield {"/".join(key): value for key, value in counted.items()} | {"parameters": row.facts["parameters"]}


def trains_alike(trial: Trial, base: Trial) -> bool:
    """Whether two trials have the same outcome; `trial` is trained up to the first epoch that differs, `base` once."""
    return all(epoch == its for epoch, its in zip(_outcome(trial), outcome(base), strict=True))


def field_changes_training(base: Trial, name: str, value: object) -> None:
    """With another value of a field of the method training is another one than that of `base`."""
    if trains_alike(base.override({f"method.{name}": value}), base):
        raise Broken(
            f"`{name}` = {value!r} changes nothing: use the field, or delete it.  One that matters only beside other "
            f'settings says so in the file: WHERE = {{"{name}": {{"other_field": value}}}}; epochs may be among these.'
        )


def every_field_changes_training(method: str) -> None:
    """Each other value of each field changes training, by itself or beside a setting that `WHERE` or `SEARCH` names."""
    config = methods.load(method).Config()
    for name, kind, value in fields(config):
        if not of_the_method(config, name):
            continue
        for other in alternatives(name, kind, value):
            _changes_somewhere(method, name, other)


def of_the_method(config: BaseModel, name: str) -> bool:
    """Whether it is for the method to show that a field, by its dotted name, changes training."""
    group, _, part = name.partition(".")
    settings = getattr(config, group)
    return not isinstance(settings, VIEWS) and (not isinstance(settings, Optimizer) or part in OPTIMIZER_FIELDS)


def _changes_somewhere(method: str, name: str, value: object) -> None:
    module = methods.load(method)
    where: Mapping[str, Mapping[str, object]] = getattr(module, "WHERE", {})
    settings = where.get(f"{name}={value}", where.get(name))
    if settings is None and name.endswith("optimizer.average"):
        settings = {name: 0.2}  # its warm-up hides larger ones in six steps
    if settings is not None:
        candidates = [beside(method, settings)]
    else:
        space = module.SEARCH.get(f"method.{name}")
        condition = {key: values[0] for key, values in space.when.items()} if space else {}
        candidates = [{}, condition] if condition else [{}]
    for position, around in enumerate(candidates):
        try:
            field_changes_training(small(method, around), name, value)
            return
        except Broken:
            if position == len(candidates) - 1:
                raise


def beside(method: str, settings: Mapping[str, object]) -> dict[str, object]:
    """What `WHERE` says of a field as overrides of a trial: fields of the method, and others such as `epochs`."""
    own = methods.load(method).Config.model_fields
    return {f"method.{key}" if key.partition(".")[0] in own else key: value for key, value in settings.items()}


# ------------------------------------------------------------------------------------------------------------ training


def probabilities_and_features(trial: Trial) -> None:
    """Training returns finite scalars with `loss`, predictions are probabilities, features have the network's width."""
    method, _, truth = assemble(trial, CPU)
    for epoch in range(2):
        scalars = method.train_epoch(epoch)
        if "loss" not in scalars:
            raise Broken("train_epoch must return the scalars of the epoch by name, `loss` among them.")
        for name, value in scalars.items():
            if not isinstance(value, Tensor) or value.ndim or value.requires_grad or not value.isfinite():
                raise Broken(f"train_epoch: `{name}` must be one finite number as a tensor, detached: take its mean.")
    images = truth.test_images[:33]
    probabilities, features = method.predict(images), method.features(images)
    are_shares = probabilities.shape == (33, 10) and (probabilities >= 0).all()
    if not are_shares or not _close(probabilities.sum(-1), torch.ones(33)):
        raise Broken(
            "predict must return probabilities of the classes, (B, K), whose rows sum to 1: take the softmax of logits."
        )
    if features.ndim != 2 or len(features) != 33 or not features.isfinite().all():
        raise Broken("features must return finite features, (B, D): those of the learner.")
    if probabilities.requires_grad or features.requires_grad:
        raise Broken("predict and features must return tensors without gradient: use the learner's.")
    if not torch.equal(method.predict(images), probabilities):
        raise Broken("predict gives another answer when it is asked again: draw nothing in it.")
    if not _close(method.predict(images[:5]), probabilities[:5]):
        raise Broken("predict depends on the other images of the batch: use learner.logits, in inference mode.")


def predicting_changes_no_training(trial: Trial) -> None:
    """Whoever asks for predictions and features between epochs gets the same training."""
    (quiet, _, truth), (watched, _, _) = assemble(trial, CPU), assemble(trial, CPU)
    for epoch in range(2):
        watched.predict(truth.test_images[:])
        watched.features(truth.test_images[:])
        if watched.train_epoch(epoch)["loss"] != quiet.train_epoch(epoch)["loss"]:
            raise Broken("predicting changes the training that follows: predict in inference mode and draw nothing.")


def same_seed_same_rows(trial: Trial) -> None:
    """The same trial gives the same rows bit for bit, and another replicate other ones."""
    first = list(run(trial, CPU))
    if unequal := difference(list(run(trial, CPU)), first):
        raise Broken(f"the same trial gives other rows a second time ({unequal}): draw from `streams` alone.")
    other = list(run(trial.override({"replicate": trial.replicate + 1}), CPU))
    if any(row.metrics == its.metrics for row, its in zip(first, other, strict=True)):
        raise Broken("another replicate gives the same rows: draw from `streams`, and train on the task's images.")


def resumes_exactly(trial: Trial) -> None:
    """Training that was interrupted after any epoch goes on to the same bits as if it had not been."""
    straight, snapshots = [], []
    for row in run(trial, CPU):
        straight.append(row)
        snapshots.append(io.BytesIO())
        torch.save(row.snapshot(), snapshots[-1])
    for done in range(1, len(straight)):  # methods with two phases are in the second one by then
        snapshots[done - 1].seek(0)
        resumed = list(run(trial, CPU, torch.load(snapshots[done - 1], weights_only=True)))
        unequal = difference(resumed, straight[done:])
        if unequal or resumed[0].step != straight[done].step:
            raise Broken(
                f"interrupted after epoch {done} and resumed, it ends otherwise ({unequal or 'steps'}): keep what "
                "changes in attributes with state_dict and load_state_dict, such as a Learner or a Record."
            )


def divergence_is_told(trial: Trial) -> None:
    """With a learning rate that is far too large, training ends as diverged, or all that it reports stays finite."""
    if not hasattr(trial.method, "optimizer"):
        return
    try:
        rows = list(run(trial.override({"method.optimizer.learning_rate": LARGEST_RATE}), CPU))
    except Diverged:
        return
    except Exception as error:  # whatever a method raises
        raise Broken(
            f"where weights diverge it fails ({type(error).__name__}: {error}): let the loss be NaN."
        ) from error
    if broken := {name for row in rows for name, value in row.metrics.items() if not np.isfinite(value)}:
        raise Broken(f"divergence is hidden: {'/'.join(min(broken))} is no number; return the losses as they are.")


def difference(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """What of two runs is not equal bit for bit, NaN to NaN: a metric, or the state at the end; empty where all is."""
    if [row.epoch for row in rows] != [row.epoch for row in others]:
        return "epochs"
    for row, other in zip(rows, others, strict=True):
        if row.metrics.keys() != other.metrics.keys():
            return "names of metrics"
        for name, value in row.metrics.items():
            if not np.array_equal(value, other.metrics[name], equal_nan=True):
                return "/".join(name)
    return "" if equal_states(rows[-1], others[-1]) else "the state at the end"


def equal_states(row: Row, other: Row) -> bool:
    """Whether the states of two rows are equal bit for bit, NaN to NaN."""
    pairs = [list(leaves(each.snapshot()["parts"])) for each in (row, other)]
    return len(pairs[0]) == len(pairs[1]) and all(
        np.array_equal(leaf, its, equal_nan=True) if isinstance(leaf, Tensor) else leaf == its
        for leaf, its in zip(*pairs, strict=True)
    )


def _close(values: Tensor, others: Tensor) -> bool:
    return torch.allclose(values, others, rtol=1.3e-6, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- hidden truth


def truth_is_out_of_reach(method: Method, seen: Task, truth: Truth) -> None:
    """Nothing that a method holds after an epoch has the true labels, or the share of wrong ones."""
    method.train_epoch(0)
    wrong = seen.labelled[seen.labels[seen.labelled] != truth.labels[seen.labelled]]
    if tells(method, truth.labels, [seen.labelled, seen.unlabelled, wrong]):
        raise Broken("the method holds the true labels: learn from what the Task holds alone.")
    if truth.facts["noise_realised"] in {leaf for leaf in leaves(method) if isinstance(leaf, float)}:
        raise Broken("the method holds the share of wrong labels: learn from what the Task holds alone.")


def poisoned_truth_changes_nothing(trial: Trial) -> None:
    """With garbage for all true labels, those of the test set included, training and predictions are the same."""
    seen, truth = draw(trial, CPU)
    *_, row = train(trial, CPU, seen, truth)
    labels = {name: (getattr(truth, name) + 3) % 10 for name in ("labels", "test_labels", "validation_labels")}
    *_, other = train(trial, CPU, seen, replace(truth, **labels))
    if not equal_states(row, other):
        raise Broken("with other true labels training is another one: learn from what the Task holds alone.")
    if row.metrics["test", "cross_entropy"] == other.metrics["test", "cross_entropy"]:
        raise Broken("predictions do not depend on the image, or not on the class: learn from images.")


def beliefs_have_their_shapes(method: Method, seen: Task) -> None:
    """What a method believes after two epochs has the shapes and ranges that `Beliefs` names."""
    for epoch in range(2):
        method.train_epoch(epoch)
    if not has_beliefs(method):
        return
    beliefs = method.beliefs()
    labelled, classes = len(seen.labelled), seen.classes
    ends = {
        "labels": (labelled, classes),
        "pseudo_labels": (len(seen.unlabelled), classes),
        "transition": (classes, classes),
        "mixture": (2, 3),
    }
    given = {name: value for name, value in vars(beliefs).items() if value is not None}
    if not given:
        raise Broken("beliefs tells nothing: leave the function out.")
    for name, value in given.items():
        end = ends.get(name, (labelled,))
        if tuple(value.shape[-len(end) :]) != end:
            raise Broken(
                f"beliefs: `{name}` must have the shape (…, {', '.join(map(str, end))}), not {tuple(value.shape)}."
            )
        known = value[value.isfinite()]
        if not len(known) or value.requires_grad:
            raise Broken(f"beliefs: `{name}` must have finite values, without gradient: detach it.")
        is_share = name in ("clean", "wrong", "selected", "coefficient", "labels", "pseudo_labels", "transition")
        if is_share and not ((known >= 0).all() and (known <= 1 + 1e-6).all()):
            raise Broken(f"beliefs: `{name}` must lie between 0 and 1.")


# -------------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Check:
    """One clause of the contract."""

    says: str  # what holds where the contract is kept
    of: Callable[[str], None]  # of the name of a method, or of a network


METHOD_CHECKS = (  # what `lnl check` runs, in this order
    Check("SEARCH names fields and holds their defaults", search_holds_defaults),
    Check("predictions are probabilities, whose rows sum to 1", lambda name: probabilities_and_features(small(name))),
    Check("the same seed gives the same rows", lambda name: same_seed_same_rows(small(name))),
    Check("predicting changes no training", lambda name: predicting_changes_no_training(small(name))),
    Check(
        "interrupted and resumed, it ends as uninterrupted", lambda name: resumes_exactly(small(name, {"epochs": 3}))
    ),
    Check("every field of Config changes training", every_field_changes_training),
    Check(
        "true labels are out of reach",
        lambda name: truth_is_out_of_reach(*assemble(small(name, {"noise.rate": 0.37}), CPU)),  # a share of its own
    ),
    Check(
        "true labels and the test set change no training",
        lambda name: poisoned_truth_changes_nothing(small(name, {"validation.images": 20})),
    ),
    Check("beliefs have their shapes", lambda name: beliefs_have_their_shapes(*assemble(small(name), CPU)[:2])),
    Check("divergence is told", lambda name: divergence_is_told(small(name))),
)
NETWORK_CHECKS = (
    Check("features have the width that it states", lambda name: probabilities_and_features(_with_network(name))),
    Check("the same seed gives the same rows", lambda name: same_seed_same_rows(_with_network(name))),
    Check("predicting changes no training", lambda name: predicting_changes_no_training(_with_network(name))),
    Check("interrupted and resumed, it ends as uninterrupted", lambda name: resumes_exactly(_with_network(name))),
)


def _with_network(name: str) -> Trial:
    data = {"resize": 32} if networks.takes_images(name) else {"dataset": "digits_vectors"}
    return small("supervised", {"network": name, **data})


def broken(name: str, check: Check) -> str:
    """How a method or a network breaks a clause of the contract, in a sentence; empty where it keeps it."""
    try:
        check.of(name)
    except Broken as error:
        return str(error)
    except Exception as error:  # whatever a user's code raises
        return f"it fails with {type(error).__name__}: {error}"
    return ""
