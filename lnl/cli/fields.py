"""The fields of settings, for pages and terminals: what each may be, its default, and what it means."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

NAMES: dict[object, str] = {
    bool: "True or False",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "None",
    Any: "anything",
    BaseModel: "method",  # of a trial: the `Config` of any method
}
BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}


@dataclass(frozen=True)
class Field:
    """A field of a model or a dataclass of pydantic."""

    name: str
    allowed: str  # "whole number ≥ 2", "sgd, adam, adamw"
    default: object  # `MISSING` where it must be given
    meaning: str  # its docstring


def fields_of(kind: type) -> list[Field]:
    """The fields of a class, in their order, with the docstrings that stand below them."""
    meanings = _docstrings(kind)
    found: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    return [
        Field(name, allowed(info.annotation, info.metadata), _default(info), meanings.get(name, _one_line(info)))
        for name, info in found.items()
    ]


def default_text(value: object) -> str:
    """A default in few words; of a group of settings, what differs from the group's own defaults."""
    if value is MISSING:
        return "must be given"
    if isinstance(value, BaseModel):
        changed = value.model_dump(exclude_defaults=True)
        texts = [f"{key} {default_text(setting)}" for key, setting in changed.items()]
        return ", ".join(texts) or f"{type(value).__name__}()"
    if value in ((), [], {}):
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(default_text, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{type(value).__name__}()" if is_dataclass(value) else str(value)


def allowed(annotation: object, limits: Sequence[object] = ()) -> str:
    """What a field of this annotation may be, in few words; `limits`: its bounds, among other metadata."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return allowed(inside[0], [*limits, *_metadata(inside[1:])])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(allowed(part, limits if part is not type(None) else ()) for part in inside))
    if origin is Literal:
        return ", ".join(map(str, inside))
    if origin is dict:
        return "{field: value}" if inside[1] is Any else f"{{name: {allowed(inside[1])}}}"
    if origin is list or inside[1:] == (Ellipsis,):
        return f"list of {_plural(allowed(inside[0]))}"
    if origin is tuple:
        return f"({', '.join(map(allowed, inside))})"
    name = NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation))
    signs = [(*BOUNDS[type(limit)], limit) for limit in limits if type(limit) in BOUNDS]
    bounds = " and ".join(f"{sign} {getattr(limit, attribute):g}" for sign, attribute, limit in signs)
    return f"{name} {bounds}".strip()


def _plural(name: str) -> str:
    return f"{name}s" if name in NAMES.values() and name.endswith(("number", "text")) else name


def _one_line(info: FieldInfo) -> str:
    return " ".join((info.description or "").split())


def _metadata(parts: Sequence[object]) -> list[object]:
    """Bounds and the like, also those within a `Field(ge=2)`."""
    return [entry for part in parts for entry in (part.metadata if isinstance(part, FieldInfo) else [part])]


def _default(info: FieldInfo) -> object:
    value = info.get_default(call_default_factory=True)
    return MISSING if value is PydanticUndefined else value


def _docstrings(kind: type) -> dict[str, str]:
    """Field -> the text below it, from the class's source.

    pydantic reads it by itself where a class says `use_attribute_docstrings`; in the class of a trial that word would
    change the hash of its code, and make all stored results stale.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return texts
