"""What the fields of settings may hold: each what its annotation says, and numbers within limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from aligner_chain.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """From where to where a number may be; with `open_` the ends are excluded."""

    least: float = -math.inf
    most: float = math.inf
    open_: bool = False

    def hold(self, value: float) -> bool:
        """Whether the number is within them."""
        return self.least < value < self.most if self.open_ else self.least <= value <= self.most

    def __str__(self) -> str:
        words = ("above", "below") if self.open_ else ("at least", "at most")
        ends = zip(words, (self.least, self.most), strict=True)
        return " and ".join(f"{word} {end:g}" for word, end in ends if math.isfinite(end))


POSITIVE = Limits(least=0, open_=True)
NOT_NEGATIVE = Limits(least=0)
AT_LEAST_ONE = Limits(least=1)
SHARE = Limits(least=0, most=1)
INNER_SHARE = Limits(least=0, most=1, open_=True)


def require_fields(settings: Any, **limits: Limits) -> None:
    """Checks a dataclass in its `__post_init__`: text, numbers, flags, lists and tables by their annotations.

    Fields of other kinds (callables, choices) are not looked at. A number is finite, and True is none.

    Args:
        settings: an instance of a dataclass.
        limits: of fields that are numbers, by their names; None has none.

    Raises:
        ConfigurationError: a field holds something else, or is out of its limits; the message says which and what it must be.
    """
    for name, kind in _kinds(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, kind):
            raise ConfigurationError(f"{name} is {value!r} and must be {_word(kind)}.")
        if name in limits and value is not None and not limits[name].hold(value):
            raise ConfigurationError(f"{name} is {value!r} and must be {limits[name]}.")


def _kinds(settings: type) -> dict[str, Any]:
    return get_type_hints(settings)


def _fits(value: Any, kind: Any) -> bool:
    of, origin = get_args(kind), get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in of)
    if origin is int:
        return not isinstance(value, bool) and isinstance(value, Integral)
    if origin is float:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if origin is tuple:
        kinds = of[:1] * len(value) if isinstance(value, tuple) and of[1:] == (...,) else of
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, of[1]) for one in value.values())
    if origin in (bool, str, Path, NoneType) or is_dataclass(origin):
        return isinstance(value, origin)
    return True


def _word(kind: Any) -> str:
    of, origin = get_args(kind), get_origin(kind) or kind
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_word(one) for one in of if one is not NoneType))
    if origin is tuple:
        count = "" if of[1:] == (...,) else f"{len(of)} of "
        return f"a list, {count}each {_word(of[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(origin, "a table")
