"""What all settings of methods have in common: they are frozen, and each field says in a docstring what it means."""

from __future__ import annotations

from pydantic import BaseModel


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    """A method's `Config`, or a part of one.  The docstring below a field becomes its meaning on the methods' page."""
