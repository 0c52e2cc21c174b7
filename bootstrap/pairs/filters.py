"""What makes no training data: each filter is a small function with a name under which what it drops is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast, get_args

from aligner_chain.checks import manner
from aligner_chain.checks.comparison import Comparison
from aligner_chain.exchange import Correction, Edit
from bootstrap.errors import TrainingDataError
from bootstrap.pairs.values import Source
from bootstrap.records import Record, is_unicode

IMPORTED = "import:"
"""What `Correction.aligner` of an imported row begins with; who vouches for the row follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """What is left out of training data. Every threshold is here; docs/training_data.md says why each is as it is.

    Args:
        context_chars: characters of prompt and answer that the training reads. A pair whose first change lies beyond
            teaches nothing. 4096 are about the 1,024 tokens that TRL's trainers read unless told otherwise.
        shortest, longest: bounds of the chosen text's length as multiples of the rejected one's.
        length_margin: characters by which the two may differ in any case: a short answer is soon twice as long.
        safety_criteria: where the Aligner says that one of these was broken, an answer may become a refusal.
        boilerplate_share: a sentence that is added, in place of none, in more than this share of pairs is boilerplate.
        boilerplate_least: and in at least this many.
        near_duplicate: the least similarity (Jaccard, of runs of three words) of question and both answers at which a
            pair repeats another.
        near_held_out: the same of two prompts, at which a prompt gives a held-out one away.
        seed: of the random permutations by which similarity is estimated.
        off: names of filters that drop nothing, out of `OPTIONAL`.

    Raises:
        TrainingDataError: a value is out of its range.
    """

    context_chars: int = 4096
    shortest: float = 0.5
    longest: float = 2.0
    length_margin: int = 100
    safety_criteria: tuple[str, ...] = ("harmless", "safe", "safety", "private", "privacy", "legal")
    boilerplate_share: float = 0.2
    boilerplate_least: int = 20
    near_duplicate: float = 0.8
    near_held_out: float = 0.8
    seed: int = 1
    off: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.off) - set(OPTIONAL):
            raise TrainingDataError(
                f"No filter that can be switched off is called {', '.join(sorted(unknown))}. "
                f"These can: {', '.join(OPTIONAL)}"
            )
        for name in ("boilerplate_share", "near_duplicate", "near_held_out"):
            if not 0 < getattr(self, name) <= 1:
                raise TrainingDataError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}.")
        if not (0 <= self.shortest <= 1 <= self.longest and self.context_chars > 0):
            raise TrainingDataError("shortest must be from 0 to 1, longest 1 or more, and context_chars above 0.")
        if not 0 <= self.seed < 2**32:
            raise TrainingDataError(f"seed must be from 0 to {2**32 - 1}, not {self.seed}.")


BOILERPLATE, NEAR_DUPLICATE, HELD_OUT = "boilerplate", "near-duplicate", "near a held-out prompt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is known of a record after all feedback: `text` is the best answer known, `source` who vouches for it.

    `source` None: nobody but the Aligner. `obstacle` says why a person's feedback leaves no best answer.
    """

    text: str
    source: Source | None = None
    obstacle: str | None = None

    @property
    def trusted(self) -> bool:
        """Whether a person or a gold set vouches for the text: then no filter doubts its content."""
        return self.source in ("human", "gold")


def verdict(record: Record) -> Verdict:
    """What people say of a record: the newest edit or review counts, and outranks a thumb.

    Where nobody says anything, an imported row is vouched for by what it was imported as.
    """
    served = record.correction.text
    decision = record.decision
    if decision is not None and decision.kind == "edit":
        return Verdict(text=str(decision.value), source="human")
    if decision is not None:
        return _said(served, bool(decision.value), "rejected in review")
    if thumb := record.latest("thumb"):
        return _said(served, bool(thumb.value), "thumbs down")
    return Verdict(text=served, source=imported_as(record.correction))


def imported_as(correction: Correction) -> Source | None:
    """Who vouches for an imported row; None for one that was collected."""
    source = correction.aligner.removeprefix(IMPORTED)
    imported = correction.aligner.startswith(IMPORTED) and source in get_args(Source)
    return cast("Source", source) if imported else None


def _said(text: str, good: bool, otherwise: str) -> Verdict:
    return Verdict(text=text, source="human") if good else Verdict(text=text, obstacle=otherwise)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A record on its way to a pair: `chosen` may be another text than the one that was served."""

    record: Record
    verdict: Verdict
    chosen: str

    @property
    def correction(self) -> Correction:
        return self.record.correction

    @property
    def rejected(self) -> str:
        return self.correction.exchange.answer

    @property
    def comparison(self) -> Comparison:
        """The two answers for checks of the text as a whole, which ask for no edits: to find them would take long."""
        whole = Edit(start=0, end=len(self.rejected), before=self.rejected, after=self.chosen)
        return Comparison(self.correction.exchange, self.chosen, (whole,))


def failed(pair: Candidate, filters: Filters) -> bool:
    """The correction failed, and nobody has written a better answer since."""
    return self_made(pair) and pair.correction.outcome == "failed"


def kept(pair: Candidate, filters: Filters) -> bool:
    """A person says that the answer was right."""
    return pair.verdict.source == "human" and pair.chosen == pair.rejected


def unchanged(pair: Candidate, filters: Filters) -> bool:
    """Both answers are the same: sigmoid DPO learns nothing from it, other losses learn something wrong."""
    return pair.chosen == pair.rejected


def with_passages(pair: Candidate, filters: Filters) -> bool:
    """The upstream read passages in a prompt that is not recorded; without them it would learn to make facts up."""
    return bool(pair.correction.exchange.context)


def empty(pair: Candidate, filters: Filters) -> bool:
    """There is no prompt, or one of the answers is empty."""
    return not (pair.correction.exchange.turns and pair.rejected.strip() and pair.chosen.strip())


def not_unicode(pair: Candidate, filters: Filters) -> bool:
    """A text holds a lone surrogate, which no tokenizer takes."""
    exchange = pair.correction.exchange
    return not all(map(is_unicode, (*(turn.text for turn in exchange.turns), pair.rejected, pair.chosen)))


def only_space_or_case(pair: Candidate, filters: Filters) -> bool:
    """The answers differ in white space or in case only."""
    return pair.chosen.casefold().split() == pair.rejected.casefold().split()


def beyond_context(pair: Candidate, filters: Filters) -> bool:
    """The first change lies where the training does not read any more."""
    room = filters.context_chars - sum(len(turn.text) for turn in pair.correction.exchange.turns)
    return room <= 0 or pair.chosen[:room] == pair.rejected[:room]


def length_ratio(pair: Candidate, filters: Filters) -> bool:
    """The chosen text is far shorter or longer: DPO would learn the length before anything else."""
    before, after = len(pair.rejected), len(pair.chosen)
    fits = filters.shortest * before <= after <= filters.longest * before
    return _doubtful(pair) and not fits and abs(after - before) > filters.length_margin


def language_flip(pair: Candidate, filters: Filters) -> bool:
    """The chosen text is in another language or script than the rejected one, and not in the question's."""
    if not _doubtful(pair) or _mostly_copied(pair):
        return False
    found = pair.comparison
    return any(manner.language(found)) or any(manner.script(found))


def refusal_flip(pair: Candidate, filters: Filters) -> bool:
    """An answer became a refusal, or a refusal an answer, and no criterion of safety was broken."""
    if not _doubtful(pair) or set(pair.correction.criteria) & set(filters.safety_criteria):
        return False
    return any(manner.refusal(pair.comparison))


Filter = Callable[[Candidate, Filters], bool]

FILTERS: Mapping[str, Filter] = MappingProxyType(
    {
        "failed": failed,
        "kept by a person": kept,
        "unchanged": unchanged,
        "with passages": with_passages,
        "empty": empty,
        "not unicode": not_unicode,
        "only white space or case": only_space_or_case,
        "edit beyond the context": beyond_context,
        "length ratio": length_ratio,
        "language flip": language_flip,
        "refusal flip": refusal_flip,
    }
)
"""The filters that look at one record, in the order in which they are asked; the first that drops it is counted."""

OPTIONAL = (
    "only white space or case",
    "edit beyond the context",
    "length ratio",
    "language flip",
    "refusal flip",
    BOILERPLATE,
    NEAR_DUPLICATE,
    HELD_OUT,
)
"""Those that can be switched off. What the others drop cannot be trained on, or must not be."""


DEFAULTS = Filters()


def obstacle(pair: Candidate, filters: Filters, names: Iterable[str] = FILTERS) -> str | None:
    """The name of the first filter that drops a pair, None where it passes all."""
    if pair.verdict.obstacle:
        return pair.verdict.obstacle
    return next((name for name in names if name not in filters.off and FILTERS[name](pair, filters)), None)


def self_made(pair: Candidate) -> bool:
    """Whether the chosen text is what was served: no person wrote it."""
    decision = pair.record.decision
    return decision is None or decision.kind != "edit"


def _mostly_copied(pair: Candidate) -> bool:
    """Whether the edits wrote less than half of the chosen text: the rest is in the language that it was in."""
    edits = pair.correction.edits
    return bool(edits) and self_made(pair) and 2 * sum(len(edit.after) for edit in edits) < len(pair.chosen)


def _doubtful(pair: Candidate) -> bool:
    return not pair.verdict.trusted
