"""Errors of a declaration in one sentence: which field is wrong, the nearest valid name, and the line of the file."""

from __future__ import annotations

import difflib
import functools
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

T = TypeVar("T")
_INTERNAL = ("lnl", "pydantic")  # packages whose frames are not where a study is declared
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


class DeclarationError(ValueError, SystemExit):
    """An invalid declaration.

    A script that stops on it (`python FILE`) ends with its sentence and without a traceback, as on any `SystemExit`;
    everywhere else it is a `ValueError`.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = f"error: {sentence}"


def declared(kind: type[T]) -> type[T]:
    """Make an error in a call of this class a `DeclarationError` with the file and the line of the call.

    Only calls are affected: what is read from a store or from the command line is validated as before.
    """
    plain = kind.__init__

    @functools.wraps(plain)
    def init(self: T, *values: Any, **given: Any) -> None:
        try:
            known = fields_at(kind, (), given)
            if unknown := [name for name in given if name not in known]:
                raise ValueError(unknown_key(unknown[0], known))
            if values and issubclass(kind, BaseModel):
                raise ValueError(f"Give every field by its name: {', '.join(known[:2])}, ….")
            plain(self, *values, **given)
        except ValidationError as error:
            raise DeclarationError(_where(kind) + sentence(error, kind, given)) from None
        except ValueError as error:
            raise DeclarationError(_where(kind) + str(error)) from None

    init.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic validates plain data as before
    setattr(kind, "__init__", init)  # noqa: B010  # which a type checker takes for a mistake
    return kind


def _where(kind: type) -> str:
    """The file and line of the call; only the class where there is no file."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INTERNAL:
        frame = frame.f_back  # type: ignore[assignment]
    call = f"{kind.__name__}(…): "
    if frame is None or not os.path.isfile(frame.f_code.co_filename):  # a notebook's cell, or a prompt
        return call
    path, here = os.path.abspath(frame.f_code.co_filename), os.path.join(os.getcwd(), "")
    return f"{path.removeprefix(here)}, line {frame.f_lineno}, {call}"


def sentence(error: ValidationError, kind: type, given: Any) -> str:
    """The first of pydantic's errors as a sentence; an unknown key beside it comes first, with the nearest one."""
    complaints = error.errors()
    beside = complaints[0]["loc"][:-1]
    first = min(complaints, key=lambda one: one["loc"][:-1] != beside or one["type"] not in _UNKNOWN)
    names = list(_fields(kind) or ())
    place = [
        names[part] if isinstance(part, int) and not depth else str(part) for depth, part in enumerate(first["loc"])
    ]
    if first["type"] in _UNKNOWN:
        *parents, last = place
        return unknown_key(last, fields_at(kind, first["loc"][:-1], given), parents)
    message = first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] in ("value_error", "missing", "missing_argument") else f", not {first['input']!r}"
    text = f"{'.'.join(place)}: {message}{value}" if place else f"{message}{value}"
    return text if text[-1] in ".?" else f"{text}."


def unknown_key(name: str, known: Sequence[str], parents: Sequence[str] = ()) -> str:
    """The sentence for an unknown key, with the nearest of the known ones, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{'.'.join([*parents, close[0]])}'?" if close else f"there are {', '.join(known)}."
    return f"Unknown key '{'.'.join([*parents, name])}': {hint}"


def fields_at(kind: Any, path: Sequence[Any], given: Any) -> list[str]:
    """The sorted names of the fields at a path such as (), ("noise",) or ("method", "optimizer"); empty without any.

    `given` is the plain data that is validated: it names the method, and with it the method's fields.
    """
    for part in path:
        fields = _fields(kind)
        given = given.get(part) if isinstance(given, Mapping) else None
        kind = _element(kind) if fields is None else fields.get(part)
        if isinstance(kind, BeforeValidator):  # of a method, whose name says which fields it has
            configure: Any = kind.func
            kind = type(configure(given["name"] if isinstance(given, Mapping) else given))
    return sorted(_fields(kind) or [])


def _fields(kind: Any) -> dict[str, Any] | None:
    """Field -> class, of a pydantic model or a dataclass; None for other classes.

    Where a field takes any model, its value here is the validator that constructs one.
    """
    if found := getattr(kind, "__pydantic_fields__", None):
        makers = {
            name: [one for one in field.metadata if isinstance(one, BeforeValidator)] for name, field in found.items()
        }
        return {name: (*makers[name], _class(field.annotation))[0] for name, field in found.items()}
    if found := getattr(kind, "__dataclass_fields__", None):
        return {name: _class(field.type) for name, field in found.items()}
    return None


def _class(annotation: Any) -> Any:
    """The class within Annotated[…] and beside None; other unions are returned as they are."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _class(inside[0])
    if origin in (typing.Union, types.UnionType):
        rest = [one for one in inside if one is not type(None)]
        return _class(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _element(kind: Any) -> Any:
    """The class of the elements of a list, a tuple or a dictionary."""
    inside = [one for one in typing.get_args(kind) if one is not Ellipsis]
    return _class(inside[-1]) if inside else None
