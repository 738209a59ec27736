"""The part of the flags that pickles name."""

from __future__ import annotations

from dezky._dezky import FlagSet

__all__ = ["unpickle"]


def unpickle(definitions: str) -> FlagSet:
    """Compiles pickled flags; one that violates a bound stays off, as it was."""
    return FlagSet.from_json(definitions, strict=False)
