"""The rows of an audit: an answer, and what is known of how right it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.jsonl import exchange_of, text_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One answer of the traffic. `right` is a right answer, and `ok` whether the answer needs nothing; None: not known.

    Either of them says the other where it can: an answer that is the right one needs nothing, any other needs something.
    Raises `ConfigurationError` where they say different things.
    """

    exchange: Exchange
    right: str | None = None
    ok: bool | None = None

    def __post_init__(self) -> None:
        if self.right is not None and self.ok is not None and self.ok != self._equal:
            told, found = str(self.ok).lower(), "is the answer" if self._equal else "is another text than the answer"
            raise ConfigurationError(f'"ok" is {told}, but the correction {found}')

    @property
    def needs_nothing(self) -> bool | None:
        """Whether the answer is right as it is; None where nothing tells."""
        return self.ok if self.right is None else self._equal

    @property
    def _equal(self) -> bool:
        return self.right == self.exchange.answer


def read(row: object) -> Row:
    """A row from an object of JSON: that of an exchange, and besides "correction", "ok", both or none."""
    if not isinstance(row, Mapping):
        raise TypeError("not a JSON object")
    exchange = exchange_of({name: value for name, value in row.items() if name not in ("ok", "correction")})
    if not isinstance(row.get("ok", False), bool):
        raise TypeError('"ok" is not true or false')
    right = text_of(row, "correction") if "correction" in row else None
    return Row(exchange=exchange, right=right, ok=row.get("ok"))
