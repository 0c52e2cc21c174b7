"""What a corrector made of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from aligner_chain.audit.distance import distance, tokens
from aligner_chain.audit.rows import Row
from aligner_chain.exchange import Finding


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a corrector made of one answer in `seconds`: a text, or an error. `findings` is the damage in the text.

    `forwards` are runs of the corrector's model, 0 where it tells of none.
    """

    row: Row
    text: str | None
    seconds: float
    error: Exception | None = None
    forwards: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the answer came back byte for byte."""
        return self.text == self.row.exchange.answer

    @property
    def changed(self) -> bool:
        return self.text is not None and not self.kept

    @property
    def fixed(self) -> bool:
        """Whether it was changed into the right answer, white space aside."""
        return self.changed and _flat(self.text) == _flat(self.row.right)

    @cached_property
    def needed(self) -> int:
        """Tokens between the answer and the right one; 0 where that is not known."""
        return 0 if self.row.right is None else distance(self._answer, tokens(self.row.right))

    @cached_property
    def edited(self) -> int:
        """Tokens between the answer and what came of it."""
        return distance(self._answer, self._written) if self.changed else 0

    @cached_property
    def edit_ratio(self) -> float:
        """Share of the tokens changed, of those of the longer text."""
        return self.edited / max(len(self._answer), len(self._written), 1)

    @cached_property
    def closer(self) -> float:
        """Part of the way to the right answer that was gone: 1 all of it, 0 none, below 0 (down to -1) away from it."""
        left = distance(self._written, tokens(self.row.right or "")) if self.changed else self.needed
        return max((self.needed - left) / self.needed, -1.0)

    @property
    def _answer(self) -> list[str]:
        return tokens(self.row.exchange.answer)

    @property
    def _written(self) -> list[str]:
        return tokens(self.text or "")


def _flat(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())
