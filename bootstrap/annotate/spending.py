"""What calls of a paid model cost, and whether another one still fits into the budget."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from aligner_chain.errors import ConfigurationError

MARGIN = 1.5
"""How many times its estimate a call may cost, as long as no reply has told better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Tokens that a model read and wrote."""

    read: int = 0
    written: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(read=self.read + other.read, written=self.written + other.written)

    @property
    def total(self) -> int:
        return self.read + self.written


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """Money for a million tokens that are read, and that are written; in the currency of your choice."""

    read: float
    written: float

    def __post_init__(self) -> None:
        if not (0 <= self.read < float("inf") and 0 <= self.written < float("inf")):
            raise ConfigurationError(f"A price is 0 or more: {self.read:g} and {self.written:g} for a million tokens.")

    def of(self, tokens: Tokens) -> float:
        return (tokens.read * self.read + tokens.written * self.written) / 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The most that may be spent, in tokens or in money; None: without end."""

    tokens: float | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        wrong = [limit for limit in (self.tokens, self.money) if limit is not None and not limit > 0]
        if wrong:
            raise ConfigurationError(f"A budget is more than 0, not {wrong[0]:g}.")


class Purse:
    """What was spent so far and what the calls in flight may still cost. Threads may share it.

    A call is reserved for with its estimate times the most that any call before it exceeded its own; so only a call that is
    dearer than all before it can exceed the budget.

    Raises:
        ConfigurationError: a budget of money, and no prices.
    """

    def __init__(self, budget: Budget, prices: Prices | None) -> None:
        if budget.money is not None and prices is None:
            raise ConfigurationError(
                "A budget of money needs prices: --price-in and --price-out, for a million tokens. Or give a budget of tokens, "
                "like  --budget 200000tokens"
            )
        self._budget, self._prices, self._spent = budget, prices, Tokens()
        self._reserved: dict[str, Tokens] = {}
        self._ratios: tuple[float, float] | None = None
        self._changing = threading.Lock()

    def add(self, spent: Tokens) -> None:
        """Counts what was spent before."""
        with self._changing:
            self._spent += spent

    def fits(self, estimate: Tokens) -> bool:
        """Whether a call of this estimate, and all that is in flight, keep the budget."""
        with self._changing:
            expected = self._spent + self._with_margin(sum(self._reserved.values(), estimate))
            money = self.money(expected) or 0.0
            return expected.total <= _limit(self._budget.tokens) and money <= _limit(self._budget.money)

    def reserve(self, key: str, estimate: Tokens) -> None:
        """Counts a call that is about to be made."""
        with self._changing:
            self._reserved[key] = estimate

    def settle(self, key: str, tokens: Tokens, *, told: bool) -> None:
        """Counts what a reserved call took; `told` by the provider, or only estimated."""
        with self._changing:
            estimate = self._reserved.pop(key)
            self._spent += tokens
            if told and tokens.total:
                seen = (tokens.read / max(estimate.read, 1), tokens.written / max(estimate.written, 1))
                self._ratios = seen if self._ratios is None else _greater(self._ratios, seen)

    def money(self, tokens: Tokens) -> float | None:
        """What tokens cost; None without prices."""
        return None if self._prices is None else self._prices.of(tokens)

    def _with_margin(self, estimate: Tokens) -> Tokens:
        read, written = (max(ratio, 1.0) for ratio in self._ratios or (MARGIN, MARGIN))
        return Tokens(read=round(estimate.read * read), written=round(estimate.written * written))


def _limit(limit: float | None) -> float:
    return float("inf") if limit is None else limit


def _greater(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])
