"""What all settings of methods have in common: they are frozen, and each field says in a docstring what it means.

Fields that matter only beside a value of another field, such as an optimizer's `milestones` or a division's
`neighbours`, lie flat beside it and say so.  As a union, discriminated by that value, they would have other dotted keys
(in `--set`, arms and searches), and configurations that are stored with all fields could not be read any more.
"""

from __future__ import annotations

from pydantic import BaseModel


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    """A method's `Config`, or a part of one.  The docstring below a field becomes its meaning on the methods' page."""
