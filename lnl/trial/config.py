"""The configuration of one trial: what is trained, on which data, and by which method."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from lnl import data, methods, networks
from lnl.declaring import declared, sentence
from lnl.dotted import assign, first_part, lookup
from lnl.storage.files import printable
from lnl.storage.places import canonical, short_hash
from lnl.system import user_code
from lnl.training.precision import Precision
from lnl.training.task import LabelsDrawn, Noise, Validation, VectorViews
from lnl.training.views import ContrastiveView, StrongView, ViewSettings, WeakView

if TYPE_CHECKING:

    class MethodConfig:
        """For type checkers: the types that may be assigned to a trial's method, and the type that is read."""

        def __get__(self, trial: object, kind: type | None = None) -> BaseModel: ...
        def __set__(self, trial: object, value: str | Mapping[str, Any] | BaseModel) -> None: ...

else:  # a name, or {"name": …, field: value}
    MethodConfig = Annotated[SerializeAsAny[BaseModel], BeforeValidator(methods.configure)]

METHOD_KEYS = ("method", "method.name")


@declared
class Trial(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One configuration × one replicate."""

    method: MethodConfig
    """a method's name, or {"name": …, field: value}; its fields are `method.FIELD`, by `lnl methods NAME`"""
    dataset: str = "cifar10"
    """a data set's name, such as digits, npz:PATH or folder:PATH"""
    network: str = "wide_resnet28_2"
    """the backbone, by its name"""
    weights: str | None = None
    """the backbone's before training: imagenet, or the path of a state dict; None: drawn at random"""
    resize: Annotated[int, Field(ge=8)] | None = None
    """pixels: images become so large before they are augmented and enter the backbone; None: they stay as they are"""
    init_from: dict[str, Any] | None = None
    """fields of another trial, whose trained backbone this one starts from, such as {"method": "simclr", "epochs":
    200}; what is not said is as here.  Noise is none where that method uses no labels."""
    labels: Annotated[int, Field(ge=2)] | None = None
    """labelled training images, all classes together; None: all"""
    labels_drawn: LabelsDrawn = "balanced"
    """which images have labels: of every class equally many, or any; a few random ones may miss some classes"""
    unlabelled_ratio: Annotated[float, Field(gt=0)] | None = None
    """unlabelled images per labelled one; None: all that are left"""
    noise: Noise = Noise()
    """how the given labels differ from the true ones"""
    validation: Validation = Validation()
    """images kept apart to choose an epoch or a suggestion"""
    vector_views: VectorViews = VectorViews()
    """of a data set of vectors, in place of augmentations"""
    probe: Annotated[int, Field(ge=0)] = 0
    """trusted images, for methods that use them; others find them, with their right labels, among the labelled ones"""
    epochs: Annotated[int, Field(ge=1)] = 100
    """length of training, without pre-training"""
    steps: Annotated[int, Field(ge=1)] | None = None
    """optimizer steps an epoch; None: one pass over the larger part"""
    precision: Precision = "float32"
    """of forward and backward passes; weights and updates are float32; auto: bfloat16 where it is faster"""
    replicate: Annotated[int, Field(ge=0)] = 0
    """the seed of every random stream; a study sets it itself"""

    @field_validator("network")
    @classmethod
    def _known_network(cls, name: str) -> str:
        if user_code.is_reference(name):
            networks.own.builder(name := user_code.normalised(name))
        elif name not in networks.names():
            raise ValueError(f"there is no network '{name}': choose one of {', '.join(networks.names())}, or a file")
        return name

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        if user_code.is_reference(name):
            user_code.load(name := user_code.normalised(name))
            return name
        if not data.is_known(name):
            raise ValueError(f"there is no data set '{name}': choose one of {', '.join(data.names())}, or a file")
        return name

    @field_validator("dataset", "weights")
    @classmethod
    def _storable(cls, name: str | None) -> str | None:
        if name is not None and printable(name) != name:
            raise ValueError(
                f"the name '{printable(name)}' is not valid UTF-8 and cannot be stored: rename the file or its folder"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Trial:
        if self.init_from is not None and self.weights is not None:
            raise ValueError("init_from and weights both set where the backbone starts: give one of them")
        if self.init_from is not None and not {"method", "method.name"} & self.init_from.keys():
            raise ValueError("init_from needs a method, such as {'method': 'simclr', 'epochs': 200}")
        before = self.prerequisites  # refuses unknown fields of prerequisites, too
        if teacher := before.get("teacher"):
            self._check_teacher(teacher)
        if source := before.get("initialisation"):
            self._check_initialisation(source)
        return self

    def _check_teacher(self, teacher: Trial) -> None:
        if self.labels is not None and teacher.labels is not None and self.labels <= teacher.labels:
            raise ValueError(
                f"the {self.labels} labelled images are among the {teacher.labels} that the teacher of the noise was "
                "trained on, whose labels it repeats: ask for more labels, or give the teacher fewer"
            )

    def _check_initialisation(self, source: Trial) -> None:
        """Raise `ValueError` where the source does not fit, or has seen what this trial must not see."""
        if (source.network, source.resize) != (self.network, self.resize):
            raise ValueError(
                f"init_from trains {source.network}, which cannot start {self.network}: choose one network"
            )
        same = ["validation", "probe"]
        if "labels" in methods.load(source.method_name).USES:
            # else it could know right labels of images that are wrongly labelled here
            same += ["labels", "labels_drawn", "noise"]
        given = {first_part(key) for key in self.init_from or ()}
        for name in same if source.dataset == self.dataset else []:
            if name in given and (name == "noise" or getattr(source, name) != getattr(self, name)):
                raise ValueError(
                    f"init_from has another {name} than the trial that starts from it: leave init_from.{name} out, "
                    "so that both see the same images and labels"
                )

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def prerequisites(self) -> dict[str, Trial]:
        """The trials that are trained before this one: its `initialisation`, the `teacher` of its semantic noise."""
        required = {}
        fresh: dict[str, Any] = {"init_from": None, "weights": None}
        same_replicate = {"replicate": self.replicate}
        if self.init_from is not None:
            method = self.init_from.get("method", self.init_from.get("method.name"))
            uses = methods.load(methods.configure(method).name).USES  # type: ignore[attr-defined]
            clean = {} if "labels" in uses else {"noise": asdict(Noise())}
            required["initialisation"] = self.override({**fresh, **clean, **self.init_from, **same_replicate})
        if self.noise.teacher is not None:
            fresh |= {"noise": asdict(Noise()), "method": "supervised", "unlabelled_ratio": None}
            required["teacher"] = self.override({**fresh, **self.noise.teacher, **same_replicate})
        if len(required) == 2 and required["initialisation"].noise == self.noise:  # one teacher for both
            whole = required["teacher"].model_dump(mode="json", exclude={"replicate"})
            required["initialisation"] = required["initialisation"].model_copy(
                update={"noise": Noise("semantic", teacher=whole)}
            )
        return required

    @property
    def method_name(self) -> str:
        """Which method runs it, see `lnl.methods.load`; every `Config` has it as its field `name`."""
        return str(self.method.name)  # type: ignore[attr-defined]

    @property
    def view_settings(self) -> ViewSettings:
        """How views are made: as the trial and its method's `weak`, `strong` and `contrastive` say."""
        kinds = {"weak": WeakView, "strong": StrongView, "contrastive": ContrastiveView}
        of_method = {name: value for name, value in self.method if isinstance(value, kinds.get(name, ()))}
        return ViewSettings(**of_method, vectors=self.vector_views, size=networks.resized_to(self.network, self.resize))

    @cached_property  # asked for again and again, in the driver at every report of a worker
    def id(self) -> str:
        """Hash of what differs from the method's defaults: a new field with a default moves no id."""
        return short_hash(canonical(self.identity()))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Trial:
        """A copy with other values, and so with an id of its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("id", None)
        return copy

    def identity(self) -> dict[str, Any]:
        """The fields that differ from the method's defaults, and the identities of its prerequisites."""
        default = Trial(method=methods.configure(self.method_name))
        settings = self.model_dump(mode="json")
        before = {name: trial.identity() for name, trial in self.prerequisites.items()}
        if before:  # what they are counts, not the fields by which they were declared
            noise = {**settings["noise"], "teacher": None}
            settings = {**settings, "init_from": None, "noise": noise, "prerequisites": before}
        changed = _difference(settings, default.model_dump(mode="json"))
        return {**changed, "method": {"name": self.method_name, **changed.get("method", {})}}

    def override(self, changes: Mapping[str, Any]) -> Trial:
        """A copy with dotted fields changed: {"noise.rate": 0.4, "method.temperature": 0.1}.

        A new `method` starts from that method's own defaults; `method.*` keys apply after it.  Raises `ValueError`
        with one sentence for unknown keys and impossible values.
        """
        settings = self.model_dump(mode="json")
        for key, value in sorted(changes.items(), key=lambda item: item[0] not in METHOD_KEYS):
            if key in METHOD_KEYS and isinstance(value, str):
                settings["method"] = {"name": value}
                continue
            assign(settings, key, copy.deepcopy(value))  # a later key may reach into it, and it belongs to the caller
        return parse(settings)

    def value(self, key: str) -> Any:
        """The value of a dotted field as plans store it: of the method its name, of the noise only what was changed.

        Raises `ValueError` where there is no such field.
        """
        settings = self.model_dump(mode="json")
        try:
            value = lookup(settings, "method.name" if key == "method" else key)
        except KeyError:
            raise ValueError(f"'{key}' is not a field of a trial.") from None
        if key == "noise":
            return {name: level for name, level in value.items() if level != getattr(Noise(), name)}
        return value

    @property
    def total_epochs(self) -> int:
        """The epochs of the run, those of pre-training included."""
        return self.epochs + getattr(self.method, "pretrain_epochs", 0)


def parse(settings: Mapping[str, Any]) -> Trial:
    """Read a trial from plain data.  Raises `ValueError` with one sentence."""
    try:
        return Trial.model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError(sentence(error, Trial, settings)) from None


def _difference(settings: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The nested settings that differ from the default ones."""
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            if inner := _difference(value, default[key]):
                changed[key] = inner
        elif key not in default or value != default[key]:
            changed[key] = value
    return changed
