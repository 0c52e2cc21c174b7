"""Rude sentences made from neutral ones, by what people removed and replaced, so that copying is learned on more than they wrote.

People rewrote some seven thousand sentences. An Aligner from random weights learns from them which words are rude, but knows
the rest by heart instead of copying it. Here a neutral sentence gets rude words at places where people removed some, words
at random in the place of its own, or the end of another sentence; what it was before is its correction. All of it is made
of the training part.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rude

from aligner_chain import Turn
from bootstrap.pairs import Triple

Pair = tuple[str, str]
"""A sentence and its correction."""

KINDS = {"people": 0.29, "made": 0.39, "neutral": 0.32}
"""Of what the rows are, and their shares."""
LONGEST = 30
"""The most words of a sentence that is put together."""


@dataclass(frozen=True)
class Edits:
    """What people did to rude words, and the neutral sentences that they can be undone in.

    `removed` are the pieces that were removed, as often as they were, and `kinds` each of them once; `beside` has them by
    the words next to them. `replaced` has, for what was written instead, all that it stood for. `words` are those of the
    neutral sentences, as often as they occur there.
    """

    fixes: Sequence[Pair]
    neutral: Sequence[str]
    words: Sequence[str]
    removed: Sequence[str]
    kinds: Sequence[str]
    beside: Mapping[str, Sequence[str]]
    replaced: Mapping[str, Sequence[str]]


def edits(fixes: Sequence[Pair], neutral: Sequence[str], rude_words: frozenset[str]) -> Edits:
    """Counted out of sentences with their corrections; neutral sentences that hold a rude word are left out."""
    beside: defaultdict[str, list[str]] = defaultdict(list)
    replaced: defaultdict[str, list[str]] = defaultdict(list)
    removed: list[str] = []
    for sentence, correction in fixes:
        ours, theirs = sentence.split(), correction.split()
        for kind, start, end, first, last in rude.changes(ours, theirs):
            piece = " ".join(ours[start:end])
            if kind == "equal" or not rude.is_rude(piece, rude_words):
                continue
            if kind == "delete":
                removed.append(piece)
                for word in (*ours[:start][-1:], *ours[end : end + 1]):
                    beside[word].append(piece)
            elif end - start <= 2 and last - first == 1:
                replaced[theirs[first]].append(piece)
    clean = [text for text in neutral if not rude.is_rude(text, rude_words)]
    words = " ".join(clean).lower().split()
    return Edits(fixes, clean, words, removed, sorted(set(removed)), beside, replaced)


def sentence(known: Edits, dice: random.Random) -> list[str]:
    """The words of a neutral sentence: half of them end as another one does, in half of them some are any words."""
    found = dice.choice(known.neutral).lower().split()
    if dice.random() < 0.5:
        end = dice.choice(known.neutral).lower().split()
        found = [*found[: dice.randint(1, len(found))], *end[dice.randrange(len(end)) :]][:LONGEST]
    return noisy(known, found, dice)


def noisy(known: Edits, words: Sequence[str], dice: random.Random) -> list[str]:
    """In half of all calls every fifth word is another one, so that what follows a word cannot be known by heart."""
    share = dice.choice([0.0, 0.2])
    return [dice.choice(known.words) if dice.random() < share else word for word in words]


def pair(known: Edits, dice: random.Random) -> Pair:
    """A neutral sentence made rude: words that stood for rude ones become those again, and removed ones are put in."""
    neutral = sentence(known, dice)
    spoilt = [
        dice.choice(known.replaced[word]) if word in known.replaced and dice.random() < 0.3 else word
        for word in neutral
    ]
    for _ in range(dice.choice([0, 0, 1] if spoilt != neutral else [1, 1, 2, 3])):
        at = dice.randint(0, len(spoilt))
        spoilt.insert(at, _piece(known, spoilt[max(0, at - 1) : at + 1], dice))
    return " ".join(spoilt), " ".join(neutral)


def _piece(known: Edits, beside: Sequence[str], dice: random.Random) -> str:
    """A removed piece: in half of all calls one that stood beside these words, else often one that is seldom seen."""
    fitting = [piece for word in beside for piece in known.beside.get(word, [])]
    if fitting and dice.random() < 0.5:
        return dice.choice(fitting)
    return dice.choice(known.kinds if dice.random() < 0.6 else known.removed)


def varied(known: Edits, fix: Pair, dice: random.Random) -> Pair:
    """A person's correction, in half of all calls with other words where nothing was changed."""
    ours, theirs = (text.split() for text in fix)
    before: list[str] = []
    after: list[str] = []
    for kind, start, end, first, last in rude.changes(ours, theirs):
        kept = noisy(known, ours[start:end], dice) if kind == "equal" else None
        before += ours[start:end] if kept is None else kept
        after += theirs[first:last] if kept is None else kept
    return " ".join(before), " ".join(after)


def triples(known: Edits, question: str, count: int, dice: random.Random) -> list[Triple]:
    """So many rows, each of one of `KINDS`: corrections by people, made ones, and sentences that need nothing."""
    return [_triple(known, question, kind, dice) for kind in dice.choices(list(KINDS), list(KINDS.values()), k=count)]


def _triple(known: Edits, question: str, kind: str, dice: random.Random) -> Triple:
    correction: str | None = None
    if kind == "people":
        answer, correction = varied(known, dice.choice(known.fixes), dice)
    elif kind == "made":
        answer, correction = pair(known, dice)
    elif dice.random() < 0.5:
        answer = " ".join(sentence(known, dice))
    else:
        answer = dice.choice(known.neutral)
        answer = answer if dice.random() < rude.CAPITALS else answer.lower()
    return Triple(turns=(Turn(role="user", text=question),), answer=answer, correction=correction)
