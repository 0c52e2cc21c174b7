"""The three callables that a round is given, and how they are named in a file.

A judge decides what counts as right; gates and figures rest on it. A verifier confirms single corrections before the
Aligner is trained on them, and must not be the judge, or the loop would only learn to please it. An annotator, a person
or a stronger model, repairs what the verifier refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aligner_chain.errors import AlignerError, ConfigurationError
from aligner_chain.exchange import Correction, Exchange
from bootstrap.errors import JudgeError, told
from bootstrap.pairs import Source, Triple

Judge = Callable[[Sequence[Exchange]], Sequence[Mapping[str, bool]]]
"""For each exchange, whether its answer meets each criterion, always the same criteria in the same order."""

Verifier = Callable[[Sequence[Correction]], Sequence[bool]]
"""For each correction, whether its text (changed or not) is fit to be learned from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """An answer repaired with as few changes as possible (itself where it is right), and the criteria that it broke."""

    text: str
    criteria: tuple[str, ...] = ()

    def triple(self, exchange: Exchange, source: Source) -> Triple:
        """The row that teaches an Aligner to repair `exchange` like this, or to KEEP it where nothing changed."""
        return Triple.of(exchange, self.text, criteria=self.criteria, source=source)


Annotator = Callable[[Sequence[Exchange]], Sequence[Annotation]]


def fully_right(verdicts: Sequence[Mapping[str, bool]]) -> list[bool]:
    """Whether each answer meets every criterion."""
    return [all(verdict.values()) for verdict in verdicts]


@contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Turns what a judge of the user raises into a `JudgeError` that begins with `what` and names the line."""
    try:
        yield
    except AlignerError:
        raise
    except Exception as error:  # the judge is the user's, and may raise whatever there is
        raise JudgeError(f"{what}: {told(error)}") from error


def judged(judge: Judge, exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
    """What a judge says of exchanges, after a look at whether it can be what a judge says.

    A score in the place of a verdict would count as met whatever it is, and no criterion at all as right.

    Raises:
        JudgeError: there is not one object {criterion: met} for each exchange, all with the same criteria and at least one.
    """
    said = _listed("judge", judge(exchanges), len(exchanges), "answers")
    wrong = next((one for one in said if not isinstance(one, Mapping) or not one or one.keys() != said[0].keys()), None)
    if wrong is not None:
        raise JudgeError(
            f"The judge returned {_shown(wrong)}, and must give an object {{criterion: met}} with the same criteria for each answer:\n"
            '  return [{"right": is_right(exchange.answer)} for exchange in exchanges]'
        )
    return [{str(name): _truth("judge", met, name) for name, met in one.items()} for one in said]


def verified(verifier: Verifier, corrections: Sequence[Correction]) -> list[bool]:
    """What a verifier says of corrections, looked at like what a judge says.

    Raises:
        JudgeError: there is not one True or False for each correction.
    """
    said = _listed("verifier", verifier(corrections), len(corrections), "corrections")
    return [_truth("verifier", fit) for fit in said]


def annotated(annotator: Annotator, exchanges: Sequence[Exchange]) -> list[Annotation]:
    """What an annotator makes of exchanges, looked at like what a judge says.

    Raises:
        JudgeError: there is not one `Annotation` for each exchange.
    """
    said = _listed("annotator", annotator(exchanges), len(exchanges), "answers")
    if (wrong := next((one for one in said if not isinstance(one, Annotation)), None)) is not None:
        raise JudgeError(
            f"The annotator returned {_shown(wrong)}, and must give Annotation(text=..., criteria=(...)) for each."
        )
    return said


def _listed(role: str, said: Any, wanted: int, of: str) -> list[Any]:
    if isinstance(said, Awaitable):
        if isinstance(said, Coroutine):
            said.close()  # else Python warns besides that nobody awaited it
        raise JudgeError(f"The {role} is async. Name a function that is not:  return asyncio.run(ask(...))")
    if isinstance(said, str | Mapping) or not isinstance(said, Iterable):
        raise JudgeError(
            f"The {role} returned {_shown(said)}, and must return a list with one entry for each of the {of}. Name the {role} "
            "itself, not a function that makes one."
        )
    listed = list(said)
    if len(listed) != wanted:
        raise JudgeError(f"The {role} returned {len(listed)} entries for {wanted} {of}, and must return one for each.")
    return listed


def _truth(role: str, value: Any, criterion: str = "") -> bool:
    """True or False, also as numpy and torch write them, or as 1 and 0."""
    if getattr(value, "shape", ()) == () and value in (True, False):
        return bool(value)
    of = f" for {criterion}" if criterion else ""
    raise JudgeError(
        f"The {role} returned {_shown(value)}{of}, and must give True or False. Compare a score with the least that will do:  "
        "score >= 0.8"
    )


def _shown(value: Any) -> str:
    """What it is; no text of a user, since a ledger keeps the message."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} with the keys {', '.join(map(str, value)) or '(none)'}"
    return f"{kind} {value!r}" if isinstance(value, int | float) else kind


def load_callable(reference: str) -> Any:
    """The object that `package.module:name` names.

    Raises:
        ConfigurationError: the text has another form, there is no such module or name, or the module cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = (
            f"{reference!r} does not name a Python object ({error}). Write it as package.module:name, and start the "
            "command where the module can be imported (PYTHONPATH)."
        )
        raise ConfigurationError(message) from error
    except Exception as error:  # the module is the user's: whatever it raises, it cannot be imported
        message = f"{reference!r} cannot be imported: {told(error)}"
        raise ConfigurationError(message) from error
