"""Checks: what a correction must not damage, and what to do where it did.

    from aligner_chain.checks import Checks

    served = Checks()(correction)
    strict = Checks(numbers="keep", names="keep")

A correction that is served lost nothing that these checks guard; `Correction.findings` tells what they found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, get_args

from aligner_chain.checks import facts, guards, manner
from aligner_chain.checks.alignment import applied
from aligner_chain.checks.comparison import Comparison, Damage
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Finding

__all__ = ["CHECKS", "Action", "Checks"]

Action = Literal["off", "warn", "restore", "keep"]
Check = Callable[[Comparison], Iterator[Damage]]

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "code": guards.code,
        "inline_code": guards.inline_code,
        "links": guards.links,
        "quotes": guards.quotes,
        "citations": guards.citations,
        "json": guards.json,
        "tables": guards.tables,
        "numbers": facts.numbers,
        "names": facts.names,
        "script": manner.script,
        "language": manner.language,
        "length": manner.length,
        "refusal": manner.refusal,
        "leftovers": manner.leftovers,
        "repetition": manner.repetition,
        "ending": manner.ending,
    }
)
"""Every check by its name, in the order in which they look."""

MOST_FINDINGS = 100
"""Findings of one check in one correction; more of them tell no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """What is done about each kind of damage, applied to a correction by calling it.

    Each field but the last four is a check, and its value one of

    - `"off"`: it is not looked for;
    - `"warn"`: it is noted in `Correction.findings`, and the correction is served;
    - `"restore"`: what was damaged is put back as it was where its place is well defined (what stands around it
      survived), and the rest of the correction is served; where it is not, as `"keep"`;
    - `"keep"`: the original is served.

    What is put back must not damage something else: all checks look again at the text that came of it.
    """

    code: Action = "restore"
    """Fenced blocks may be edited, but not vanish, shrink to a stub, or lose a fence or their language."""
    inline_code: Action = "restore"
    """What was in backticks."""
    links: Action = "restore"
    """Addresses, altered ones too, but for one that the question or a passage gave."""
    quotes: Action = "restore"
    """Passages that are quoted word for word from the question or a passage."""
    citations: Action = "restore"
    """`[1]`, `[1, 2]`, `[^1]`, `(Smith 2020)`."""
    json: Action = "restore"
    """An answer or a fenced block that is JSON."""
    tables: Action = "restore"
    """Tables of Markdown."""
    numbers: Action = "warn"
    """Numbers with their units that are gone with nothing in their place; a replaced one is no finding."""
    names: Action = "warn"
    """Names in the question that the answer used."""
    script: Action = "keep"
    """The script of most letters, and that no words of one that was not there slip in: "salt и pepper". Marks of one are a warning."""
    language: Action = "warn"
    """The language, for a few of Europe's."""
    length: Action = "warn"
    """The length within the bounds below."""
    refusal: Action = "warn"
    """English refusals: making one is what many an Aligner is for."""
    leftovers: Action = "keep"
    """Marks of templates and chat formats."""
    repetition: Action = "keep"
    """Loops."""
    ending: Action = "warn"
    """A text that breaks off."""
    shortest: float = manner.SHORTEST
    """Least length of the correction, as a multiple of the answer's."""
    longest: float = manner.LONGEST
    """Greatest length of the correction, as a multiple of the answer's."""
    margin: int = manner.MARGIN
    """An answer with fewer characters may be shortened to anything; one may grow by so many whatever its length."""
    may_delete: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Criterion to the checks that only warn where the Aligner says that it was broken: `{"toxicity": ("quotes",)}`."""

    def __post_init__(self) -> None:
        for name in CHECKS:
            if getattr(self, name) not in get_args(Action):
                raise ConfigurationError(
                    f"The check {name} cannot be {getattr(self, name)!r}. It is one of {', '.join(get_args(Action))}."
                )
        require_known_checks(self.may_delete)

    @classmethod
    def off(cls) -> Checks:
        """No check at all: every correction is served as it was written."""
        off: dict[str, Any] = dict.fromkeys(CHECKS, "off")
        return cls(**off)

    def allowing(self, may_delete: Mapping[str, Sequence[str]]) -> Checks:
        """These checks, and besides what `may_delete` of them already allows, what a criterion may delete."""
        return replace(self, may_delete=MappingProxyType({**self.may_delete, **may_delete}))

    def __call__(self, correction: Correction) -> Correction:
        """The correction as it is to be served. One whose outcome is not `corrected` comes back as it is."""
        if correction.outcome != "corrected":
            return correction
        pair = Comparison(correction.exchange, correction.text, correction.edits)
        found = self._look(pair, correction.criteria)
        places = {one: place for one in found if one.action == "restore" and (place := pair.place(one.damage))}
        edits = pair.alignment.restored(places.values())
        if edits == pair.alignment.edits:
            return _judged(replace(correction, edits=edits), found)
        text = applied(pair.answer.text, edits)
        if text == pair.answer.text:
            return _refused(correction, found)
        again = self._look(Comparison(correction.exchange, text, edits), correction.criteria)
        return _judged(
            replace(correction, text=text, edits=edits), [*(replace(one, done=True) for one in places), *again]
        )

    def _look(self, pair: Comparison, criteria: Iterable[str]) -> list[_Found]:
        length = partial(manner.length, shortest=self.shortest, longest=self.longest, margin=self.margin)
        allowed = {name for criterion in criteria for name in self.may_delete.get(criterion, ())}
        found = list[_Found]()
        checks: dict[str, Check] = {**CHECKS, "length": length}
        for name, check in checks.items():
            action = getattr(self, name)
            if action != "off":
                found += (_Found(name, _allowed(action, one, name in allowed), one) for one in _seen(name, check, pair))
        return found


@dataclass(frozen=True, slots=True)
class _Found:
    """One damage, and what is to be done about it; `done` once it is put back."""

    check: str
    action: Action
    damage: Damage
    done: bool = False

    @property
    def finding(self) -> Finding:
        action: Any = "warn" if self.action == "warn" else "restore" if self.done else "keep"
        start, end = self.damage.span or (None, None)
        return Finding(check=self.check, action=action, message=self.damage.message, start=start, end=end)


def require_known_checks(may_delete: Mapping[str, Sequence[str]]) -> None:
    """Raises `ConfigurationError` where a criterion may delete what no check looks for."""
    unknown = sorted({name for names in may_delete.values() for name in names} - CHECKS.keys())
    if unknown:
        raise ConfigurationError(
            f"There is no check {unknown[0]!r} to allow. Those that there are: {', '.join(CHECKS)}."
        )


def _seen(name: str, check: Check, pair: Comparison) -> list[Damage]:
    """What a check finds. One that fails has found that it could not look: where it guards, the original is served."""
    try:
        return list(islice(check(pair), MOST_FINDINGS))
    except Exception as error:  # noqa: BLE001  (an answer must be served whatever the text makes a check run into)
        return [Damage(message=f"the check {name} failed with {type(error).__name__}")]


def _allowed(action: Action, damage: Damage, allowed: bool) -> Action:
    return "warn" if damage.mild or allowed else action


def _judged(correction: Correction, found: Sequence[_Found]) -> Correction:
    """The correction with its findings, refused where one of them asks for that."""
    if any(one.action != "warn" and not one.done for one in found):
        return _refused(correction, found)
    return replace(correction, findings=tuple(one.finding for one in found))


def _refused(correction: Correction, found: Sequence[_Found]) -> Correction:
    # What was put back in vain is found again by the second look, and told once.
    found = list(dict.fromkeys(replace(one, done=False) for one in found))
    counts = Counter(one.damage.message for one in found if one.action != "warn")
    reason = "; ".join(f"{message} ({count} times)" if count > 1 else message for message, count in counts.items())
    return replace(correction.refused(reason), findings=tuple(one.finding for one in found))
