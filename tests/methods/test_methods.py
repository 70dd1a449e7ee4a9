"""The contract (`lnl.trial.contract`) that every file in lnl/methods must pass.  A new method is tested by being there.

Its fields are found by themselves; one that matters only beside another setting needs a line in `WHERE`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lnl import methods
from lnl.functional import transition
from lnl.methods import clean_net
from lnl.space import Choice
from lnl.training.learner import Learner, Optimizer
from lnl.trial import contract
from lnl.trial.config import Trial, parse
from lnl.trial.contract import fields, outcome
from lnl.trial.evaluation import diagnose
from lnl.trial.reachable import leaves, tells
from lnl.trial.run import Execution, run

METHODS = methods.names()
TRAINED = [
    method for method in METHODS if "optimizer" in methods.load(method).Config.model_fields
]  # the others only look
GOLDEN = Path(__file__).parents[1] / "golden"
PAIR = tuple(map(tuple, transition.matrix("pair", 0.4, 10).tolist()))
ARMS: dict[str, dict[str, dict[str, Any]]] = {  # beside the default: resumed, and kept as golden curves
    **{
        method: {"without_threshold": {"method.threshold": 0.0}} for method in ("fixmatch", "pseudo_label", "selfmatch")
    },
    "s4l": {
        "exemplar": {"method.pretext": "exemplar"},
        "pretraining": {"method.mode": "pretrain", "method.pretrain_epochs": 1},
    },
    "barlow_twins": {"without_projector": {"method.projector_layers": 0}},
    "dynamic_bootstrapping": {"dynamic_mixup": {"method.guess": "dynamic_mixup"}},
    "mentornet": {"data_driven": {"method.mentor": "data_driven"}},
    "gce": {"pruned": {"method.truncated": True, "method.prune_from": 0.0, "method.k": 0.095}},
    "loss_correction": {"backward": {"method.direction": "backward", "method.given": PAIR}},
    "dividemix": {
        "alone": {"method.co_divide": False, "method.co_guess": False, "method.ensemble": "first"},
        "averaged_product": {"method.warm_up": 0, "method.split_source": "product", "method.separation": 1e6},
        "initial_features": {"method.split_source": "fine", "method.embedding": "initial"},
    },
    "robmix": {
        "alternate_owners_frozen_head": {
            "method.optimizers": "two_owner",
            "method.sync": "alternate",
            "method.head_update": "frozen",
        },
        "alternating_epoch": {"method.topology": "alternating_epoch"},
        "gradnorm": {"method.head_gradient": "gradnorm"},
        "pretraining_and_noise": {"method.pretrain_epochs": 1, "method.head_gradient": "noise"},
    },
}
# Where a field, or one value of it, matters: settings of the run with it and of the run without it.  The first found of
# "method.field=value", "method.field", "field=value" and "field" counts.
WHERE: dict[str, dict[str, Any]] = {
    "optimizer.momentum": {"optimizer.kind": "sgd"},
    "optimizer.nesterov": {"optimizer.kind": "sgd"},
    "optimizer.milestones": {"optimizer.schedule": "step"},
    "optimizer.factor": {"optimizer.schedule": "step"},
    "optimizer.average": {"optimizer.average": 0.2},  # its warm-up hides larger ones in six steps
    "weak.shift": {"weak.shift": 0.25},  # of 8 pixels: the default and its half are one pixel
    "strong.rand_augment": {"augmentation": "strong"},
    "contrastive.jitter": {"augmentation": "contrastive"},
    "ramp": {"ramp": 0.9},
    "neighbours": {"evaluation": "neighbours"},
    "label_propagation.alpha": {"clamp": "soft"},
    "gce.k": {"truncated": True, "k": 0.1},  # hardly a likelihood is above 0.25 in six steps
    "gce.prune_from": {"truncated": True, "prune_from": 0.0},
    "gce.prune_every": {
        "truncated": True,
        "prune_from": 0.0,
        "k": 0.095,
        "prune_every": 1,
        "optimizer.learning_rate": 0.1,
    },
    "gce.optimizer.weight_decay": {"optimizer.learning_rate": 0.1},
    "estimation": {"epochs": 4},  # share of the epochs: two can be shared in one way only
    "co_teaching.ramp": {"ramp": 1},
    "co_teaching.schedule": {"ramp": 2},
    "co_teaching.optimizer.kind=adamw": {"optimizer.weight_decay": 0.1},
    "weigh_from": {"epochs": 8},
    "clean_net.references": {"references": 3},
    "clean_net.threshold": {"weighting": "hard", "threshold": 0.18},  # cosines are near 0.09 after six steps
    "fit_every": {"fit_every": 1, "epochs": 4},
    "correct_from": {"epochs": 8},  # the first epoch is without correction whatever it is
    "candidates": {"candidates": 5},
    "prototypes": {"prototypes": 1, "distinct": 2.0},  # features are hardly distinct after six steps
    "dynamic_bootstrapping.bootstrap_from": {"bootstrap_from": 0.9},
    "dividemix.warm_up": {"epochs": 12},
    "dividemix.embedding": {"split_source": "neighbours"},
    "dividemix.neighbours": {"split_source": "neighbours", "neighbours": 5},
    "dividemix.neighbour_temperature": {"split_source": "neighbours"},
    "dividemix.average_losses=always": {"warm_up": 0, "separation": 0.0},
    "dividemix.average_losses=never": {"warm_up": 0, "separation": 1e6},
    "dividemix.history": {"warm_up": 0, "average_losses": "always", "history": 1},
    "dividemix.separation": {"warm_up": 0, "separation": 1e6},
    "dividemix.threshold": {"threshold": 0.99},
    "dividemix.ramp": {"ramp": 1},
    "mentornet.mentor=self_paced": {"linear_from": 0.3},
    "mentornet.burn_in": {"burn_in": 0.0},
    "mentornet.dropout_until": {"burn_in": 1.0},  # else all images are above the moving percentile at first
    "dynamic_bootstrapping.hardest_from": {"guess": "dynamic_mixup", "bootstrap_from": 0.2, "hardest_from": 1.0},
    "mentornet.gamma": {"mentor": "linear", "linear_from": 0.3},
    "neighbour_temperature": {"evaluation": "neighbours"},
    "topology=pretrain_then_ssl": {"pretrain_epochs": 1},
    "head_update=frozen_pretrained": {"pretrain_epochs": 1},
    "head_frozen_from": {"head_update": "frozen_after", "epochs": 4},
    "head_gradient=scale": {"gradient_scale": 0.5},
    "head_gradient=scale_head": {"gradient_scale": 0.5, "optimizer.kind": "sgd"},
    "head_gradient=clip": {"gradient_clip": 0.01},
    "gradient_scale": {"head_gradient": "scale"},
    "gradient_clip": {"head_gradient": "clip", "gradient_clip": 0.01},
    "gradient_noise": {"head_gradient": "noise"},
    "gradnorm_alpha": {
        "head_gradient": "gradnorm",
        "gradnorm_alpha": 50.0,
        "lambda_mixmatch": 10.0,
        "ramp": 0.0,
    },  # else pulls agree
    "updated": {"optimizers": "per_module"},
    **{  # nothing is as sure as the default threshold within six steps
        f"{method}.{field}": {"threshold": 0.0}
        for method in ("fixmatch", "pseudo_label", "selfmatch")
        for field in ("threshold", "temperature", "strong_view", "lambda_u", "ramp", "include_labelled")
    },
    "s4l.mode=pretrain": {"pretrain_epochs": 1},
    "s4l.exemplars": {"pretext": "exemplar"},
    "s4l.embedding": {"pretext": "exemplar"},
    "barlow_twins.optimizer.kind=adamw": {"optimizer.weight_decay": 0.1},
    "barlow_twins.optimizer.weight_decay": {"optimizer.weight_decay": 0.1},
    "sync": {"optimizers": "two_owner"},
    "optimizer.first_cycle": {"optimizer.schedule": "restarts", "optimizer.first_cycle": 0.5},
    "ieg.optimizer.kind": {"meta_momentum": 0.0},
}
# What a method needs to learn within some seconds.
QUICK: dict[str, dict[str, Any]] = {
    "fixmatch": {},
    "selfmatch": {},
    "s4l": {"pretext": "exemplar"},  # digits that are turned need longer
    "gce": {"optimizer.learning_rate": 0.1, "epochs": 4},
    "learning_to_reweight": {"epochs": 5},  # black borders take it longer
    "mentornet": {"epochs": 5},  # the same
    "glc": {"epochs": 6},  # two phases
    "mixmatch": {"lambda_u": 10.0, "ramp": 0.9},
    "robmix": {"lambda_u": 10.0, "ramp": 0.9},
    "ieg": {"consistency_weight": 5.0},
    "loss_correction": {"epochs": 6},  # two phases
}
# The same training as the default, on purpose: test_robmix.py and test_meta.py prove it.
EQUIVALENT = {"optimizers=per_module", "meta_gradient=exact"}
Tiny = Callable[..., Trial]


def where(method: str, name: str, value: Any) -> dict[str, Any]:
    keys = (f"{method}.{name}={value}", f"{method}.{name}", f"{name}={value}", name)
    return next((WHERE[key] for key in keys if key in WHERE), {})


def alternatives(name: str, kind: Any, value: Any) -> list[Any]:
    return [PAIR] if name == "given" else contract.alternatives(name, kind, value)


def possible(method: str, key: str) -> list[Any]:
    """All values of a field that is a choice, or some of those that `SEARCH` may ask for and another one."""
    name = key.removeprefix("method.")
    kind, default = next((kind, now) for each, kind, now in fields(methods.load(method).Config()) if each == name)
    if isinstance(default, int) and not isinstance(default, bool):
        return list(range(6))
    return [default, *alternatives(name, kind, default)]


def first(conditions: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Settings under which the conditions hold."""
    return {key: values[0] for key, values in conditions.items()}


def value_of(trial: Trial, key: str) -> Any:
    return reduce(getattr, key.split("."), trial)


SHARED_BY = "supervised"  # the method that shows that each field of the optimizer and of views changes training


def is_tested(method: str, name: str, value: Any) -> bool:
    if EQUIVALENT & {f"{name}={value}", f"{method}.{name}={value}"}:
        return False
    return method == SHARED_BY or contract.of_the_method(methods.load(method).Config(), name)


FIELDS = [
    pytest.param(method, name, value, id=f"{method}-{name}={value}")
    for method in METHODS
    for name, kind, default in fields(methods.load(method).Config())
    for value in alternatives(name, kind, default)
    if is_tested(method, name, value)
]


def predictions(trial: Trial) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name.startswith("test/")} for row in outcome(trial)]


# ------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("method", METHODS)
def test_unknown_keys_are_refused_in_one_sentence(method: str, tiny: Tiny) -> None:
    for key in ("method.lerning_rate", *(["method.optimizer.lerning_rate"] if method in TRAINED else [])):
        with pytest.raises(ValueError, match=rf"^Unknown key '{key}': [^\n]+[.?]$"):
            tiny(method, {key: 1})


@pytest.mark.parametrize("method", METHODS)
def test_search_names_fields_and_holds_their_defaults(method: str, tiny: Tiny) -> None:
    space = methods.load(method).SEARCH
    papers = Trial(method=methods.configure(method))
    assert space
    for place, (key, one) in enumerate(space.items()):
        assert value_of(papers if key.startswith("method.") else tiny(method), key) in one, key
        ends = one.values if isinstance(one, Choice) else (one.low, one.high)
        for end in ends:
            assert value_of(tiny(method, {**first(one.when), key: end}), key) == end
        for parent, allowed in one.when.items():
            assert parent not in list(space)[place:], f"{key} asks for {parent}, which comes later"
            assert set(allowed) < set(possible(method, parent)), f"{key} would always be searched, or never"


CONDITIONS = [
    pytest.param(method, key, parent, value, id=f"{method}-{key}-{parent}={value}".replace("method.", ""))
    for method in METHODS
    for key, one in methods.load(method).SEARCH.items()
    for parent in one.when
    for value in possible(method, parent)
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "key", "parent", "value"), CONDITIONS)
def test_a_field_is_searched_where_it_matters(method: str, key: str, parent: str, value: Any, tiny: Tiny) -> None:
    """Where its condition holds, another value changes training; elsewhere it changes nothing, or is refused."""
    name, other = key.removeprefix("method."), parent.removeprefix("method.")
    conditions = methods.load(method).SEARCH[key].when
    around = {**where(method, name, None), **where(method, other, value)}
    try:
        base = tiny(method, {**contract.beside(method, around), **first(conditions), parent: value})
        kind, now = next((kind, now) for each, kind, now in fields(base.method) if each == name)
        changed = base.override({key: alternatives(name, kind, now)[0]})
    except ValueError:
        assert value not in conditions[parent]
        return
    if value in conditions[parent]:
        assert not contract.trains_alike(changed, base)
    else:  # exactly, but for what Adam undoes but for its epsilon
        tolerance = 1e-2 if key in ("method.lambda_mixmatch", "method.gradient_scale") else 0.0
        for row, other_row in zip(predictions(changed), predictions(base), strict=True):
            assert row == pytest.approx(other_row, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    ("method", "key"),
    [(method, key) for method in METHODS for key in methods.load(method).SEARCH if not key.startswith("method.")],
)
def test_a_searched_field_of_the_trial_changes_training(method: str, key: str, tiny: Tiny) -> None:
    one = methods.load(method).SEARCH[key]
    assert outcome(tiny(method, {key: one.low})) != outcome(tiny(method, {key: one.high}))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name", "value"), FIELDS)
def test_every_field_changes_training(method: str, name: str, value: Any, tiny: Tiny) -> None:
    base = tiny(method, contract.beside(method, where(method, name, value)))
    if value == dict((key, now) for key, _, now in fields(base.method))[name]:
        pytest.fail(f"WHERE sets {name} itself to {value}: choose another number there.")
    contract.field_changes_training(base, name, value)


@pytest.mark.parametrize("method", TRAINED)
def test_every_learner_gets_the_methods_whole_optimizer(
    method: str, tiny: Tiny, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what the learner does with a field (`test_every_field_changes_training`, test_learner.py) holds for it."""
    given = []
    make = Learner.__init__

    def noted(self: Learner, network: Any, optimizer: Any, *rest: Any, **settings: Any) -> None:
        given.append(optimizer)
        make(self, network, optimizer, *rest, **settings)

    monkeypatch.setattr(Learner, "__init__", noted)
    optimizer = {
        "kind": "sgd", "learning_rate": 0.0123, "momentum": 0.7, "nesterov": True, "weight_decay": 0.0321,
        "schedule": "step", "milestones": (0.3, 0.6), "factor": 0.2, "first_cycle": 0.4, "warm_up": 0.1,
        "average": 0.25,
    }  # fmt: skip
    assert optimizer.keys() == Optimizer.model_fields.keys(), "a new field of the optimizer: add it here"
    build(tiny(method, {f"method.optimizer.{name}": value for name, value in optimizer.items()}))
    of_others = [clean_net.SMALL_NETWORK] if method == "clean_net" else []  # which sees features and no images
    assert given and all(each.model_dump() == optimizer for each in given if each not in of_others)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("mixmatch", "optimizer.momentum", 0.5),
        ("mixmatch", "optimizer.milestones", (0.1, 0.2)),
        ("robmix", "gradient_clip", 1e-3),
        ("simclr", "neighbours", 1),
    ],
)
def test_that_comparison_notices_a_field_without_effect(method: str, name: str, value: Any, tiny: Tiny) -> None:
    """These matter only beside other settings, so the test above would fail without `WHERE`."""
    assert outcome(tiny(method, {f"method.{name}": value})) == outcome(tiny(method))


@pytest.mark.parametrize("method", TRAINED)
def test_a_part_of_the_optimizer_keeps_the_methods_other_defaults(method: str) -> None:
    nested = parse({"method": {"name": method, "optimizer": {"average": 0.5}}})
    dotted = parse({"method": method}).override({"method.optimizer.average": 0.5})
    assert nested == dotted
    assert parse(dotted.identity()) == dotted


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("method", METHODS)
def test_epochs_predictions_and_features(method: str, tiny: Tiny, build: Callable) -> None:
    contract.probabilities_and_features(tiny(method))
    built = build(tiny(method))
    assert built.method.features(built.truth.test_images[:33]).shape == (33, 96)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_predicting_changes_no_training(method: str, tiny: Tiny) -> None:
    contract.predicting_changes_no_training(tiny(method))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_same_trial_twice(method: str, tiny: Tiny) -> None:
    trial = tiny(method)
    contract.same_seed_same_rows(trial)
    first, other = (next(run(trial.override({"replicate": replicate}))) for replicate in (0, 1))
    for name in ("noise_hash", "split_hash", "init_hash"):
        assert other.facts[name] != first.facts[name]
    assert other.metrics["train", "loss"] != first.metrics["train", "loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "arm"), [(method, arm) for method in METHODS for arm in ["", *ARMS.get(method, {})]]
)
def test_interrupted_and_resumed(method: str, arm: str, tiny: Tiny) -> None:
    trial = tiny(method, {"epochs": 3, **(ARMS[method][arm] if arm else {})})
    contract.resumes_exactly(trial)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: str, tiny: Tiny) -> None:
    trial = tiny(method, {"precision": "bfloat16"})
    rows = list(run(trial, Execution(device="cpu")))
    assert all(np.isfinite(value) for row in rows for value in row.metrics.values())
    assert [row.metrics["train", "loss"] for row in rows] != [row["train/loss"] for row in outcome(tiny(method))]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns(method: str, tiny: Tiny, build: Callable) -> None:
    """Either its predictions become good, or, where a probe makes them good from the start, its loss falls."""
    fields_now = methods.load(method).Config.model_fields
    short = QUICK.get(method, {"lambda_u": 10.0, "ramp": 1} if "lambda_u" in fields_now else {})
    clean = {"labels": 500, "noise.rate": 0.0, "noise.kind": "none", "epochs": 3, "steps": 20}
    if method in TRAINED:
        clean["method.batch_size"] = 32
    trial = tiny(method, {**clean, **contract.beside(method, short)})
    built = build(trial)
    before = (built.method.predict(built.truth.test_images).argmax(-1) == built.truth.test_labels).double().mean()
    rows = list(run(trial))
    accuracy, losses = rows[-1].metrics["test", "accuracy"], [row.metrics["train", "loss"] for row in rows]
    assert accuracy > 0.8
    assert accuracy > before + 0.5 or losses[-1] < 0.9 * losses[0] or method not in TRAINED


# ------------------------------------------------------------------------------------------------------- hidden truth


@pytest.mark.parametrize("method", METHODS)
def test_true_labels_and_noise_rate_are_out_of_reach(method: str, tiny: Tiny, build: Callable) -> None:
    built = build(tiny(method, {"noise.rate": 0.37}))
    contract.truth_is_out_of_reach(built.method, built.task, built.truth)
    truth, seen = built.truth.labels, built.task
    wrong = seen.labelled[seen.labels[seen.labelled] != truth[seen.labelled]]
    assert len(wrong) == built.truth.facts["noise_realised"] * 50 > 0
    hidden = [seen.labelled, seen.unlabelled, wrong]
    assert (seen.labels[seen.unlabelled] == -1).all()
    for thing in (built.method, built.task):
        assert not tells(thing, truth, hidden)
        numbers = {leaf for leaf in leaves(thing) if isinstance(leaf, float)}
        assert not numbers & {0.37, built.truth.facts["noise_realised"]}
    # neither search is blind
    for index in hidden:
        assert tells({"inside": lambda answer=truth[index]: answer, "beside": [truth[index]]}, truth, hidden)
    assert 0.37 in set(leaves(tiny(method, {"noise.rate": 0.37})))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_poisoned_truth(method: str, tiny: Tiny) -> None:
    """With garbage instead of all true labels, the test set's included, training and predictions are the same."""
    contract.poisoned_truth_changes_nothing(tiny(method, {"validation.images": 20}))


@pytest.mark.parametrize("method", METHODS)
def test_beliefs_have_their_shapes(method: str, tiny: Tiny, build: Callable) -> None:
    sure = {"method.threshold": 0.0} if method in ("fixmatch", "pseudo_label", "selfmatch") else {}
    built = build(tiny(method, sure))
    if not hasattr(built.method, "beliefs"):
        pytest.skip("believes nothing of the labels")
    contract.beliefs_have_their_shapes(built.method, built.task)
    metrics, _ = diagnose(built.method, built.task, built.truth)
    assert metrics


def test_the_order_of_images_does_not_tell_their_class(tiny: Tiny, build: Callable) -> None:
    built = build(tiny("supervised"))
    for part in (built.task.labelled, built.task.unlabelled):
        truth = built.truth.labels[part]
        assert (truth == torch.arange(len(part)) % built.task.classes).double().mean() < 0.3


# ------------------------------------------------------------------------------------------------------- golden curves


# Of the three epochs of an arm those that another CPU repeats: the data-driven mentor is itself trained by many steps,
# and on an AMD EPYC the third loss differed by 2.7e-4 from the recorded one, the first two by less than 1e-6.
REPEATED = {("mentornet", "data_driven"): 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_golden_curves(method: str, tiny: Tiny, request: pytest.FixtureRequest) -> None:
    """Catches any change of training that nobody meant.

    One step an epoch: under five instruction sets of a CPU, rounding errors met no kink (of a ReLU, of max-pooling)
    within three steps, but did within nine, and losses differed by 1e-3.  Accuracies jump, and are left out.
    """
    path = GOLDEN / f"{method}.json"
    trial = tiny(method, {"epochs": 3, "steps": 1})
    curves = {arm: curve(trial.override(changes)) for arm, changes in {"default": {}, **ARMS.get(method, {})}.items()}
    if request.config.getoption("--update-golden"):
        path.write_text(as_text(curves), encoding="utf-8")
    assert path.exists(), "run `pytest tests/methods/test_methods.py --update-golden` and commit the file"
    expected = json.loads(path.read_text(encoding="utf-8"))
    assert curves.keys() == expected.keys()
    for arm, columns in curves.items():
        assert columns.keys() == expected[arm].keys()
        epochs = REPEATED.get((method, arm), 3)
        for name, values in columns.items():
            recorded = pytest.approx(expected[arm][name][:epochs], rel=1e-4, abs=1e-5)
            assert values[:epochs] == recorded, f"{arm}: {name}"


def curve(trial: Trial) -> dict[str, list[float]]:
    rows = [{"/".join(key): float(f"{value:.7g}") for key, value in row.metrics.items()} for row in run(trial)]
    smooth = [name for name in rows[0] if "accuracy" not in name and not name.startswith("oracle/")]
    return {name: [row[name] for row in rows] for name in smooth}


def as_text(curves: dict[str, dict[str, list[float]]]) -> str:
    """JSON with a line per curve."""
    arms = [
        f"{json.dumps(arm)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {values}" for name, values in columns.items())
        + "\n}"
        for arm, columns in curves.items()
    ]
    return "{" + ", ".join(arms) + "}\n"
