"""What of a method is mutable and goes into a checkpoint: everything with `state_dict` and `load_state_dict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

# The state of one part: nested dictionaries of tensors and plain numbers, as `torch.save` takes them.  Only the part
# that has written one knows its entries, hence `Any`.
State = Mapping[str, Any]


class Stateful(Protocol):
    """A part of a method whose state can be stored and restored: a learner, a record, random streams, a module."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State, /) -> object: ...


def stateful_parts(method: object) -> dict[str, Stateful]:
    """The attributes of a method that have a state, by their names: what a checkpoint stores of it."""
    return {name: part for name, part in vars(method).items() if hasattr(part, "load_state_dict")}
