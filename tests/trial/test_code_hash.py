"""Which edits make a stored result stale: a table, made by editing the text of the package, and what training runs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import pytest
import torch

from lnl.trial import evaluation
from lnl.trial.code_hash import (
    APART,
    ENTRIES,
    ROOT,
    ROOTS,
    RULE,
    SOURCES,
    Tree,
    carried,
    code_hash,
    joined,
    read_sources,
    receive,
    sources_digest,
)
from lnl.trial.config import Trial
from lnl.trial.definitions import Definition
from lnl.trial.run import Execution, run

Sources = dict[str, bytes]
LOOKED_AT = ("supervised", "gce", "dividemix", "fixmatch", "robmix", "simclr")
ALL = set(LOOKED_AT)
NONE: set[str] = set()
LOSS = "losses.generalised_cross_entropy("
LOSS_IMPORT = "from lnl.functional.losses import generalised_cross_entropy as loss_q"
GCE, LOSSES, ROBMIX = "lnl/methods/gce.py", "lnl/functional/losses.py", "lnl/methods/robmix.py"


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return {method: code_hash(method) for method in LOOKED_AT}


def stale(sources: Mapping[str, bytes], before: Mapping[str, str]) -> set[str]:
    """The methods whose stored results are stale under this text of the package."""
    tree = Tree(sources)
    return {method for method in LOOKED_AT if tree.hash(method) != before[method]}


def file_of(path: str) -> str:
    """The file of the package whose path ends so, in whatever folder it lies."""
    (file,) = [file for file in SOURCES if file.endswith(f"/{path}")]
    return file


def edited(path: str, old: str, new: str, sources: Mapping[str, bytes] = SOURCES) -> Sources:
    """The package with one passage replaced: of the one file that has it, else of the file that is named."""
    files = [file for file in sources if old.encode() in sources[file]]
    file = files[0] if len(files) == 1 else file_of(path)
    text = sources[file].decode()
    assert text.count(old) == 1, f"{text.count(old)} times in {file}: {old}"
    return {**sources, file: text.replace(old, new).encode()}


def followed_by(path: str, lines: str) -> Sources:
    """The package with lines at the end of one file."""
    file = file_of(path)
    return {**SOURCES, file: SOURCES[file] + f"\n\n{lines}\n".encode()}


# file, passage, what stands there instead, methods whose results are stale
EDITS: dict[str, tuple[str, str, str, set[str]]] = {
    # ----------------------------------------------------------------------------- what cannot change a trial's numbers
    "a docstring": ("losses.py", '"""-log p_y.', '"""The logarithm of the likelihood, negated.', NONE),
    "a module's docstring": ("learner.py", '"""A network in training:', '"""Other words:', NONE),
    "a comment": ("learner.py", "# torch's fused step breaks", "# the fused step breaks", NONE),
    "a field's docstring": ("fixmatch_update.py", '"""tau: probability that', '"""The probability that', NONE),
    "an annotation of an argument": (
        "losses.py",
        "def cross_entropy(logits: Tensor,",
        "def cross_entropy(logits,",
        NONE,
    ),
    "the annotation of a result": (
        "schedules.py",
        "def cosine(progress: float) -> float:",
        "def cosine(progress):",
        NONE,
    ),
    "the annotation of a variable": ("noise.py", "    ties = torch.rand(", "    ties: Tensor = torch.rand(", NONE),
    "the annotation of a field, though no dataclass converts by it": (
        "task.py",
        "    labelled: Tensor  # (L,)",
        "    labelled: Any  # (L,)",
        ALL,
    ),
    "an error of a reader": ("data/folder.py", "add some or remove the folder", "put an image there", NONE),
    "an error of the split": ("task.py", "leaves some of {data.name}'s", "is too few for {data.name}'s", NONE),
    "an error of a schedule": ("schedules.py", "progress must lie between 0 and 1, got", "Progress is", NONE),
    "an error of a method": ("methods/dividemix.py", "leaves none of {task.epochs} for DivideMix", "is too long", NONE),
    "the message of divergence": ("trial.py", "Training broke down in epoch", "Something went wrong in epoch", NONE),
    "the helper that words an error": ("declaring.py", "known = fields_at(kind, (), given)", "known = []", NONE),
    "the bins of a histogram": (
        "trial.py",
        "HISTOGRAM_BINS, EMBEDDING_COMPONENTS = 40, 50",
        "HISTOGRAM_BINS, EMBEDDING_COMPONENTS = 20, 9",
        NONE,
    ),
    "how a histogram is counted": ("trial.py", "torch.histc(known.clamp(0, most)", "torch.histc(known", NONE),
    "the embedding of a figure": ("trial.py", "features - features.mean(0), full", "features, full", NONE),
    "the epochs that a figure shows": ("trial.py", "for quarter in (1, 2, 3, 4)", "for quarter in (1, 4)", NONE),
    "a search space": ("methods/gce.py", '"method.q": Uniform(0.1, 1.0)', '"method.q": Uniform(0.2, 0.9)', NONE),
    "a search space of a component": (
        "mixmatch_update.py",
        '"method.views": Integer(1, 4)',
        '"method.views": Integer(1, 8)',
        NONE,
    ),
    "the bounds of a field": ("methods/gce.py", "Field(gt=0, le=1)", "Field(gt=0.1, lt=1)", NONE),
    "a field's text": ("methods/gce.py", "Field(gt=0, le=1)", 'Field(gt=0, le=1, description="of L_q")', NONE),
    "one choice more of a field, though nobody has chosen it": (
        "learner.py",
        'kind: Literal["sgd", "adam", "adamw"]',
        'kind: Literal["sgd", "adam", "adamw", "lamb"]',
        ALL,
    ),
    "how a reader resizes": ("data/folder.py", "Image.Resampling.BICUBIC", "Image.Resampling.LANCZOS", NONE),
    "what digits are read from": ("data/digits.py", "test_size=360", "test_size=300", NONE),
    "how results are written": ("results.py", "def write_atomically(", "WRITTEN = 1\n\n\ndef write_atomically(", NONE),
    "how checkpoints are written": ("checkpoints.py", 'SIGNATURE = "lnl-state"', 'SIGNATURE = "lnl-checkpoint"', NONE),
    "a function of a class that all use, though nobody calls it": (
        "learner.py",
        "    def advance(self)",
        "    def unused(self) -> int:\n        return 1\n\n    def advance(self)",
        ALL,
    ),
    "a text on its way to an error, though only the error has it": (
        "methods/__init__.py",
        "did you mean",
        "perhaps you mean",
        ALL,
    ),
    # --------------------------------------------------------------------------------------- what can, for some methods
    "a loss": (
        "losses.py",
        "torch.expm1(-q * cross_entropy(logits, labels)) / -q",
        "torch.expm1(-q * cross_entropy(logits, labels)) / q",
        {"gce"},
    ),
    "a helper of a loss": ("losses.py", "(variance + 1e-5).rsqrt()", "(variance + 1e-3).rsqrt()", NONE),  # Barlow Twins
    "a contrastive loss": ("losses.py", "views @ views.mT / temperature", "views @ views.mT", {"robmix", "simclr"}),
    "the virtual step of meta-learning, for the class of all learners has it": (
        "meta.py",
        "DISTANCE = 1e-3",
        "DISTANCE = 1e-2",
        ALL,
    ),
    "the sharpening of guesses": (
        "targets.py",
        "probabilities.log() / temperature",
        "probabilities.log()",
        {"dividemix", "fixmatch", "robmix"},
    ),
    "a component": (
        "mixmatch_update.py",
        "return labelled + batch.weight * unlabelled",
        "return labelled + unlabelled",
        {"robmix"},
    ),
    "the default of a field": ("methods/gce.py", "le=1)] = 0.7\n", "le=1)] = 0.8\n", {"gce"}),
    "the default of a component's field": ("fixmatch_update.py", "] = 0.95\n", "] = 0.9\n", {"fixmatch"}),
    "a step of a method": ("methods/supervised.py", "learning_rate=0.03", "learning_rate=0.04", {"supervised"}),
    "what a method uses": ("methods/gce.py", 'USES = ("labels",)', 'USES = ("labels", "probe")', {"gce"}),
    "what a method thinks of labels": (
        "methods/gce.py",
        "return Beliefs(loss=1 - pull,",
        "return Beliefs(loss=pull,",
        {"gce"},
    ),
    # ---------------------------------------------------------------------------------------------- what can, for all
    "the default of Optimizer": (
        "learner.py",
        "learning_rate: Annotated[float, Field(gt=0)] = 0.002",
        "learning_rate: Annotated[float, Field(gt=0)] = 0.001",
        ALL,
    ),
    "the default of Trial": (
        "trial.py",
        "epochs: Annotated[int, Field(ge=1)] = 100",
        "epochs: Annotated[int, Field(ge=1)] = 200",
        ALL,
    ),
    "what a field is converted by": (
        "trial.py",
        "replicate: Annotated[int, Field(ge=0)] = 0",
        "replicate: Annotated[int, BeforeValidator(abs)] = 0",
        ALL,
    ),
    "the update of weights": ("learner.py", "self.settings.learning_rate * scale", "self.settings.learning_rate", ALL),
    "the decay of the average": ("schedules.py", "return min(decay, (1 + step) / (10 + step))", "return decay", ALL),
    "a schedule": ("schedules.py", "return (1 + math.cos(math.pi * progress)) / 2", "return 1.0", ALL),
    "a constant of augmentation": ("augment.py", "GREY = 127", "GREY = 128", ALL),
    "one operation of a table": ("augment.py", "Operation(rotate, -30, 30)", "Operation(rotate, -20, 20)", ALL),
    "a function in a table": ("augment.py", "return ~images", "return 256 - images", ALL),
    "a dictionary of pipelines": (
        "augment.py",
        '"none": (draw_nothing, identity)',
        '"none": (draw_nothing, invert)',
        ALL,
    ),
    "the order of drawn parameters": (
        "augment.py",
        "    boxes: Tensor\n    mirrored: Tensor",
        "    mirrored: Tensor\n    boxes: Tensor",
        ALL,
    ),
    "a block of a network": ("networks/preact_bottleneck.py", "+ self.shortcut(x)", "+ x", ALL),
    "a table of networks": (
        "networks/__init__.py",
        'ConvNet002,\n    "co',
        'lambda *_: SmallConvNet(3),\n    "co',
        ALL,
    ),
    "a network that is looked up by its name": (
        "networks/vision.py",
        "width = network.head.in_features",
        "width = 1",
        ALL,
    ),
    "a constant beside it": ("networks/vision.py", "module.p = 0.0", "module.p = 0.1", ALL),
    "the noise": ("noise.py", "target = (labels + (classes - span)", "target = (labels + 1 + (classes - span)", ALL),
    "a map of classes": ("noise.py", "CIFAR10_MAP = (0, 1, 0, 5", "CIFAR10_MAP = (0, 1, 1, 5", ALL),
    "the seed of streams": ("streams.py", 'f"{self.replicate}/{name}"', 'f"{name}/{self.replicate}"', ALL),
    "a digest": ("streams.py", "return total.hexdigest()[:16]", "return total.hexdigest()[16:32]", ALL),
    "the split": ("training/draw.py", "rank * classes + labels.clamp(min=0)", "rank * classes", ALL),
    "the accuracy": ("trial.py", "return float(matches.double().mean())", "return float(matches.float().mean())", ALL),
    "the neighbours of the last epoch": (
        "trial.py",
        "NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07",
        "NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 10, 0.07",
        ALL,
    ),
    "a metric of the diagnosis": ("trial.py", "float((right / chosen.sum(-1)).mean())", "float(right.mean())", ALL),
    "the rule that chooses an epoch": ("results.py", "scores[-10:].mean()", "scores[-5:].mean()", ALL),
    "when training is said to diverge": ("trial.py", "not math.isfinite(value)]", "math.isnan(value)]", ALL),
    "the kind of an error": ("trial.py", 'raise Diverged(f"Weights were', 'raise ValueError(f"Weights were', ALL),
    "the mean of a data set's pixels": ("data/cifar.py", "(0.4914, 0.4822, 0.4465)", "(0.5, 0.5, 0.5)", ALL),
    "a mean within a function": ("data/stl10.py", "(0.4467, 0.4398, 0.4066)", "(0.5, 0.5, 0.5)", ALL),
    "how pixels are standardised": (
        "data/inspection.py",
        "self._squares / self._count - mean**2",
        "self._squares / self._count",
        ALL,
    ),
    "whether a data set is mirrored": ("data/digits.py", "flip=False", "flip=True", ALL),
    "whether a user's data set is mirrored": (
        "data/npz.py",
        'arrays.get("flip", np.array(True))',
        'arrays.get("flip", np.array(False))',
        ALL,
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_results_stale_or_not(name: str, before: dict[str, str]) -> None:
    path, old, new, expected = EDITS[name]
    assert stale(edited(path, old, new), before) == expected


def spelled_otherwise() -> Sources:
    sources = edited(
        "losses.py", "from torch.nn.functional import normalize, softplus", "import torch.nn.functional as F"
    )
    text = sources[LOSSES].decode().replace("normalize(", "F.normalize(").replace("softplus(", "F.softplus(")
    sources[LOSSES] = text.encode()
    for old, new in (
        ("import math\n", "from math import ceil\n"),
        ("math.ceil(", "ceil("),
        ("from lnl.functional import losses\n", ""),
        (f"        loss = {LOSS}", f"        {LOSS_IMPORT}\n\n        loss = loss_q("),
    ):
        sources = edited("methods/gce.py", old, new, sources)
    return sources


def moved_modules(*renamed: tuple[str, str]) -> Sources:
    """Files or folders under other names, with all imports adapted."""
    sources = {}
    for path, content in SOURCES.items():
        text = content.decode()
        for old, new in renamed:
            parent, _, name = old.rpartition(".")
            text = re.sub(rf"\b{re.escape(old)}\b", new, text)
            text = re.sub(
                rf"(?<=^from {re.escape(parent)} import )(.*)\b{name}\b",
                rf"\1{new.rpartition('.')[2]} as {name}",
                text,
                flags=re.MULTILINE,
            )
            path = path.replace(f"{old.replace('.', '/')}", new.replace(".", "/"))
        sources[path] = text.encode()
    assert sources.keys() != SOURCES.keys()
    return sources


def moved_function() -> Sources:
    """A private helper of a method moves into a component."""
    text = SOURCES[ROBMIX].decode()
    helper = text[text.index("def _times(") :]
    assert helper.count("\ndef ") == 0
    sources = followed_by("mixmatch_update.py", helper)
    rest = text.removesuffix(helper)
    old = "from lnl.training.readout import"
    sources[ROBMIX] = rest.replace(old, f"from lnl.training.mixmatch_update import _times\n{old}").encode()
    assert sources[ROBMIX] != rest.encode()
    return sources


def described() -> Sources:
    """Comments become descriptions of fields."""
    old = "threshold: Annotated[float, Field(ge=0, le=1)] = 0.95\n"
    return edited("fixmatch_update.py", old, 'threshold: float = Field(0.95, ge=0, le=1, description="tau")\n')


def swapped() -> Sources:
    """A network with another's block of the same name, which the tree holds as it did."""
    return edited(
        "networks/preact_resnet.py",
        "class PreActResNet18(",
        "from lnl.networks.preact_bottleneck import Block as Other\n\nBlock = Other\n\n\nclass PreActResNet18(",
    )


def starred() -> Sources:
    """A loss through a star."""
    sources = edited("methods/gce.py", "from lnl.functional import losses\n", "from lnl.functional.losses import *\n")
    text = sources[GCE].decode().replace("losses.generalised_cross", "generalised_cross")
    sources[GCE] = text.encode()
    return sources


TREES: dict[str, tuple[Callable[[], Sources], set[str]]] = {
    "nothing": (lambda: dict(SOURCES), NONE),
    "the spelling of imports": (spelled_otherwise, NONE),
    "a folder under another name": (
        lambda: moved_modules(("lnl.functional", "lnl.pure"), ("lnl.training", "lnl.nets")),
        NONE,
    ),
    "files under other names": (
        lambda: moved_modules(
            ("lnl.functional.losses", "lnl.functional.criteria"), ("lnl.trial.divergence", "lnl.trial.diverging")
        ),
        NONE,
    ),
    "a helper in another file": (moved_function, NONE),
    "a description that moves into a field's default": (described, {"fixmatch"}),
    "an import by a star, by which the whole module counts": (starred, {"gce"}),
    "another block of the same name": (swapped, ALL),
    "a definition that nothing uses": (lambda: followed_by("losses.py", "def unused():\n    return 1"), NONE),
    "a constant that nothing uses": (lambda: followed_by("methods/supervised.py", "UNUSED = 1"), NONE),
    "a data class that nothing uses": (
        lambda: followed_by("task.py", "@dataclass(frozen=True)\nclass Unused:\n    value: int = 1"),
        NONE,
    ),
    "classes of plain bases that nothing uses": (
        lambda: followed_by(
            "task.py",
            "from typing import NamedTuple, Protocol\n\n\n"
            "class Mistake(ValueError):\n    pass\n\n\nclass Other(Mistake):\n    pass\n\n\n"
            "class Seam(Protocol):\n    value: int\n\n\nclass Pair(NamedTuple):\n    first: int",
        ),
        NONE,
    ),
    "a class whose metaclass may register it": (
        lambda: followed_by("task.py", "class Unused(metaclass=type(Task)):\n    pass"),
        ALL,
    ),
    "a class of a class that registers nothing": (
        lambda: followed_by("task.py", "class Unused(Task):\n    pass"),
        NONE,
    ),
    "a class with a decorator of another module": (
        lambda: followed_by("task.py", "from lnl.functional import noise\n\n\n@noise.corrupt\nclass Unused:\n    pass"),
        ALL,
    ),
    "a class with a base of another module": (
        lambda: followed_by(
            "task.py", "from lnl.training import streams\n\n\nclass Unused(streams.Streams):\n    pass"
        ),
        ALL,
    ),
    "a flag of torch": (lambda: followed_by("task.py", "torch.backends.cudnn.benchmark = True"), ALL),
    "a flag of torch under a condition": (
        lambda: followed_by(
            "streams.py", "if torch.cuda.is_available():\n    torch.use_deterministic_algorithms(True)"
        ),
        ALL,
    ),
    "a flag that a constant's value sets": (lambda: followed_by("streams.py", "_ = torch.set_num_threads(1)"), ALL),
    "a flag in a file that only one method imports": (
        lambda: followed_by("gradients.py", "torch.backends.cudnn.benchmark = True"),
        {"robmix"},
    ),
    "a flag in a file of storage": (
        lambda: followed_by("checkpoints.py", "torch.set_float32_matmul_precision('high')"),
        ALL,
    ),
    "a function replaced from elsewhere": (
        lambda: followed_by("task.py", "augment.normalise = lambda images, mean, std: images"),
        ALL,
    ),
    "a method replaced from elsewhere": (
        lambda: followed_by("targets.py", "from lnl.training import learner\n\nlearner.Learner.step = None"),
        {"dividemix", "fixmatch", "robmix"},
    ),
    "a constant that is bound again": (lambda: followed_by("image_operations.py", "GREY += 1"), ALL),
    "a function that is defined again": (
        lambda: followed_by("schedules.py", "def cosine(progress):\n    return 1.0"),
        ALL,
    ),
    "a name that tells the module to make it": (
        lambda: {
            **edited("methods/gce.py", "losses.generalised_cross_entropy(", "losses.made("),
            LOSSES: SOURCES[LOSSES] + b"\n\ndef __getattr__(name):\n    return kl_divergence\n",
        },
        {"gce"},
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_another_tree_makes_results_stale_or_not(name: str, before: dict[str, str]) -> None:
    make, expected = TREES[name]
    assert stale(make(), before) == expected


WITHIN = "(kept * (loss"  # a passage of the method GCE

# of a tree that has been edited: file and passage of the first edit, file and passage of the second, whether it counts
SECOND_EDITS: dict[str, tuple[Callable[[], Sources], tuple[str, str, str], bool]] = {
    "a loss behind a star": (starred, ("losses.py", "labels)) / -q", "labels)) / q"), True),
    "any function of a module that is asked by a computed name": (
        lambda: edited("methods/gce.py", LOSS, 'getattr(losses, "kl_" + "divergence")('),
        ("losses.py", "(variance + 1e-5)", "(variance + 1e-3)"),
        True,
    ),
    "two functions that use each other": (
        lambda: edited(
            "methods/gce.py",
            WITHIN,
            f"losses.odd(3) and {WITHIN}",
            followed_by(
                "losses.py",
                "def even(n):\n    return n == 0 or odd(n - 1)\n\n\ndef odd(n):\n    return even(n - 1)",
            ),
        ),
        ("losses.py", "n == 0 or odd", "n <= 0 or odd"),
        True,
    ),
    "a loss that a function imports": (
        lambda: edited("methods/gce.py", f"        loss = {LOSS}", f"        {LOSS_IMPORT}\n        loss = loss_q("),
        ("losses.py", "labels)) / -q", "labels)) / q"),
        True,
    ),
    "a function that a table's decorator registers": (
        lambda: followed_by("schedules.py", "def kept(f):\n    return f\n\n\n@kept\ndef registered():\n    return 1"),
        ("schedules.py", "def registered():\n    return 1", "def registered():\n    return 2"),
        True,
    ),
    "the text of a warning": (
        lambda: edited("methods/gce.py", WITHIN, f"warnings.warn(f'now {{1}}', stacklevel=2) or {WITHIN}"),
        ("methods/gce.py", "f'now {1}'", "f'then {2}'"),
        False,
    ),
    "the kind of a warning": (
        lambda: edited("methods/gce.py", WITHIN, f"warnings.warn('now', UserWarning) or {WITHIN}"),
        ("methods/gce.py", "UserWarning", "FutureWarning"),
        True,
    ),
    "a line of a log": (
        lambda: edited("methods/gce.py", WITHIN, f"logger.info('now %s', 1) or {WITHIN}"),
        ("methods/gce.py", "'now %s'", "'then %s'"),
        False,
    ),
    "the text of a field": (
        lambda: edited("methods/gce.py", "Field(gt=0, le=1)", 'Field(gt=0, le=1, description="of L_q")'),
        ("methods/gce.py", '"of L_q"', '"the exponent"'),
        False,
    ),
    "the text of an assertion": (
        lambda: edited(
            "methods/gce.py", f"        loss = {LOSS}", f"        assert images, 'now'\n        loss = {LOSS}"
        ),
        ("methods/gce.py", "images, 'now'", "images, 'then'"),
        False,
    ),
    "what is imported for type checkers": (
        lambda: followed_by("losses.py", "if TYPE_CHECKING:\n    import this\nelse:\n    that = 1"),
        ("losses.py", "    import this\n", "    import those\n"),
        False,
    ),
}


@pytest.mark.parametrize("name", SECOND_EDITS)
def test_an_edit_of_an_edited_tree_counts_or_not(name: str) -> None:
    make, (path, old, new), counts = SECOND_EDITS[name]
    sources = make()
    assert (Tree(edited(path, old, new, sources)).hash("gce") != Tree(sources).hash("gce")) == counts


def test_the_hash_says_by_which_rule_it_was_made() -> None:
    assert re.fullmatch(r"3-[0-9a-f]{12}", code_hash("gce")) and RULE == "3-"
    assert joined([code_hash("gce")]) == code_hash("gce")
    assert re.fullmatch(r"3-[0-9a-f]{12}", joined([code_hash("gce"), "another"]))
    assert read_sources(ROOT) == SOURCES
    methods = {path.removeprefix("lnl/methods/").removesuffix(".py") for path in SOURCES if "/methods/" in path}
    hashes = {method: code_hash(method) for method in methods - {"__init__"}}
    assert len(set(hashes.values())) == len(hashes)
    with pytest.raises(LookupError, match="no method 'nothing'"):
        code_hash("nothing")


def test_a_process_takes_over_the_hashes_of_another_that_runs_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = code_hash("gce")
    digest, hashes = carried()
    assert hashes["gce", None] == expected
    for sent, known in (("another text", expected), (digest, "2-sent")):
        monkeypatch.setattr("lnl.trial.code_hash._hashes", {})
        receive(sent, {("gce", None): "2-sent"})
        assert code_hash("gce") == known


def test_machines_are_compared_by_all_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = sources_digest()
    theirs = followed_by("checkpoints.py", "# another comment")
    assert Tree(theirs).hash("supervised") == code_hash("supervised")
    monkeypatch.setattr("lnl.trial.code_hash.SOURCES", theirs)
    sources_digest.cache_clear()
    assert sources_digest() != ours
    monkeypatch.undo()
    sources_digest.cache_clear()
    assert sources_digest() == ours


@pytest.mark.parametrize("name", [*ROOTS, *APART])
def test_the_tables_of_the_rule_name_what_there_is(name: str) -> None:
    module, rest = Tree(SOURCES).split(tuple(name.split(".")))
    assert not rest or rest[0] in module.names


def test_all_that_is_asked_of_a_method_s_file_is_followed() -> None:
    """Methods are imported by a computed name, which the rule cannot follow; nothing else that counts is."""
    tree = Tree(SOURCES)
    computed = {
        part.module.name
        for method in LOOKED_AT
        for part in tree.counted(method)
        if re.search(r"(?<![.\w])(eval|exec|globals|__import__)\(", part.written[0])
        or any(str(use).startswith(("importlib", "sys.modules")) for use in tree.uses(part))
    }
    assert computed == {"lnl.methods"}
    asked = {
        node.attr
        for path, text in SOURCES.items()
        if "/trial/" in path and not path.endswith("/contract.py")  # which checks methods, and trains none
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("methods.load(")
    }
    assert {"Method", "USES"} <= asked <= set(ENTRIES)


# ------------------------------------------------------------------------------------- what training really runs

NOT_COUNTED = ("data/", "declaring.py", "storage/", "system/", "trial/provenance.py")  # though trials run them
FIGURES = {"_histogram", "embedding_epochs", "embed"}  # of the trial's evaluation


@contextmanager
def watched() -> Iterator[set[CodeType]]:
    """The code objects of the package that run in the block."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/lnl/"):
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def lines(definition: Definition) -> set[tuple[str, int]]:
    """File and numbers of the lines that a definition takes."""
    path, node = definition.module.name.replace(".", "/"), definition.node
    file = f"{path}.py" if f"{path}.py" in SOURCES else f"{path}/__init__.py"
    first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", []))])
    return {(file, line) for line in range(first, (getattr(node, "end_lineno", None) or 0) + 1)}


TRAINED: dict[str, tuple[str, dict[str, Any]]] = {  # they cover most of what trials can run
    "a division by two signals": (
        "dividemix",
        {
            "method.warm_up": 0,
            "method.split_source": "product",
            "noise": {"kind": "instance", "rate": 0.3},
            "epochs": 1,
        },
    ),
    "losses with owners": ("robmix", {"method.head_gradient": "gradnorm", "epochs": 1}),
    "a trained start": (
        "gce",
        {"init_from": {"method": "byol"}, "method.optimizer.schedule": "restarts", "method.optimizer.average": 0.9},
    ),
    "meta-learning": ("ieg", {"epochs": 1}),
    "a teacher": (
        "supervised",
        {
            "noise": {"kind": "semantic", "teacher": {"labels": 20}},
            "network": "resnet29_ieg",
            "method.augmentation": "autoaugment",
            "validation.images": 20,
            "epochs": 1,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_all_that_training_runs_counts(name: str, tiny: Callable[..., Trial]) -> None:
    """The check that matters most: no function that a real trial runs is left out but those that are named above."""
    method, changes = TRAINED[name]
    trial = tiny(method, changes)
    with watched() as seen:
        rows = list(run(trial, Execution(embeddings=4)))
    assert rows
    tree = Tree(SOURCES)
    methods = {method, *(prerequisite.method_name for prerequisite in trial.prerequisites.values())}
    counted = set().union(*(lines(definition) for one in methods for definition in tree.counted(one)))
    ran = {
        (code.co_filename.removeprefix(f"{ROOT}/"), code.co_firstlineno): code.co_qualname
        for code in seen
        if code.co_name != "<module>" and not code.co_filename.startswith(tuple(f"{ROOT}/lnl/{x}" for x in NOT_COUNTED))
    }
    left_out = {(file, ran[file, line]) for file, line in ran.keys() - counted}
    assert {(file, name.partition(".")[0]) for file, name in left_out} <= {
        ("lnl/trial/evaluation.py", name) for name in FIGURES
    }
    assert len(ran) > 60 and "run" in ran.values()


@pytest.mark.slow
def test_what_feeds_only_figures_changes_no_number(tiny: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny("dividemix", {"epochs": 3})
    rows = list(run(trial, Execution(embeddings=8)))
    assert any(rows[0].arrays)
    for name, instead in (
        ("_histogram", lambda values, most: torch.zeros(3)),
        ("embedding_epochs", lambda epochs: {2}),
        ("embed", lambda method, truth, count: {}),
    ):
        assert name in FIGURES
        for module in (sys.modules["lnl.trial.run"], evaluation):
            monkeypatch.setattr(module, name, instead, raising=module is evaluation)
    again = list(run(trial, Execution(embeddings=8)))
    assert [row.metrics for row in again] == [row.metrics for row in rows]
    assert rows[0].arrays.keys() != again[0].arrays.keys()
