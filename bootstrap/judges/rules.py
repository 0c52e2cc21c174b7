"""Judges made of rules: what an answer must hold, must not hold, and how long it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.structured import is_structured
from bootstrap.errors import JudgeError
from bootstrap.judges.preference import Preference, compared, paired

Rule = Callable[[Exchange], bool]
"""Whether the answer of an exchange meets one criterion."""


class RuleJudge:
    """A judge of right and wrong, and of preference, from one rule for each criterion.

    Called with exchanges it is a `Judge`. Of two answers the one that meets more criteria is preferred, and as many
    are a tie, also where they are not the same ones.

    Args:
        rules: for each criterion a function of an exchange; those of this module, or any of yours.

    Raises:
        ConfigurationError: there is no rule.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        if not rules:
            raise ConfigurationError('A RuleJudge needs a rule:  RuleJudge({"short": length(at_most=500)})')
        self._rules = dict(rules)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
        """For each exchange whether its answer meets each criterion.

        Raises:
            JudgeError: a rule failed; its error is the cause.
        """
        return [{name: _met(name, rule, one) for name, rule in self._rules.items()} for one in exchanges]

    def prefer(self, prompts: Sequence[Exchange], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        """As `PreferenceJudge.prefer`. Raises `JudgeError` where a rule failed."""
        rows = paired(prompts, first, second)
        before = self([replace(prompt, answer=one) for prompt, one, _ in rows])
        after = self([replace(prompt, answer=other) for prompt, _, other in rows])
        return [
            Preference(score=compared(sum(one.values()), sum(other.values())), reason=_difference(one, other))
            for one, other in zip(before, after, strict=True)
        ]


def must_contain(*texts: str) -> Rule:
    """The answer holds all of these texts, in upper or lower case."""
    return lambda exchange: all(text.casefold() in exchange.answer.casefold() for text in texts)


def must_not_contain(*texts: str) -> Rule:
    """The answer holds none of these texts, neither in upper nor in lower case."""
    return lambda exchange: not any(text.casefold() in exchange.answer.casefold() for text in texts)


def length(*, at_least: int = 1, at_most: int | None = None) -> Rule:
    """The answer, without white space around it, has so many characters; at most None: without end."""
    return lambda exchange: at_least <= len(exchange.answer.strip()) <= (at_most or float("inf"))


def is_json(exchange: Exchange) -> bool:
    """The answer is an object or array of JSON, bare or in a fence of Markdown."""
    return is_structured(exchange.answer)


def _met(name: str, rule: Rule, exchange: Exchange) -> bool:
    try:
        return bool(rule(exchange))
    except Exception as error:  # the user's own code
        raise JudgeError(
            f"The rule {name!r} failed: {type(error).__name__}: {error}. A rule takes an Exchange and returns True where "
            "its answer meets the criterion."
        ) from error


def _difference(one: Mapping[str, bool], other: Mapping[str, bool]) -> str:
    """Which criteria only one of two answers meets."""
    only = {
        "first": [name for name, met in one.items() if met and not other[name]],
        "second": [name for name, met in other.items() if met and not one[name]],
    }
    return "; ".join(f"only the {which} meets {', '.join(names)}" for which, names in only.items() if names)
