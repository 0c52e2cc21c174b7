"""ParaDetox: what a rude word is, how near a text is to a person's rewrite, and what an Aligner is trained on.

The texts are never printed and never written to a file of results; of the lexicon only its length is.
"""

from __future__ import annotations

import difflib
import random
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from aligner_chain import Turn
from bootstrap.pairs import Triple

Rewrites = Mapping[str, Sequence[str]]
"""Each distinct sentence with the rewrites that people gave it."""

FAR = 0.5
"""A rewrite less alike than this, by word F1, says the same in other words and shows no edit."""
CAPITALS = 0.4
"""The share of neutral sentences that are trained on with their capitals.

Rude sentences have none, many rewrites do: with all of them an Aligner would learn to tell the two by that.
"""


# --- measures --------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of a text, in small letters and without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def word_f1(one: str, other: str) -> float:
    """Twice the words in common (as often as in both) by the words of both; 1 where neither has any."""
    ours, theirs = words(one), words(other)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if ours or theirs else 1.0


def closeness(text: str, rewrites: Iterable[str]) -> float:
    """Word F1 against the rewrite that is nearest to the text."""
    return max(word_f1(text, one) for one in rewrites)


def lexicon(known: Rewrites, *, share: float = 0.85, least: int = 10) -> frozenset[str]:
    """The words that people removed in at least `share` of at least `least` pairs of a sentence and a rewrite."""
    seen: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for sentence, rewrites in known.items():
        for rewrite in rewrites:
            said = set(words(sentence))
            seen.update(said)
            removed.update(said - set(words(rewrite)))
    return frozenset(word for word in seen if seen[word] >= least and removed[word] >= share * seen[word])


def is_rude(text: str, rude: frozenset[str]) -> bool:
    return not rude.isdisjoint(words(text))


def deleted(text: str, rude: frozenset[str]) -> str:
    """The text without its rude words, all else as it is: the corrector that knows the lexicon alone."""
    return " ".join(piece for piece in text.split() if not is_rude(piece, rude)) if is_rude(text, rude) else text


def lost(sentence: str, text: str, rewrites: Iterable[str]) -> set[str]:
    """The words of the sentence that all its rewrites keep, and the text has no more."""
    return set(words(sentence)).intersection(*map(words, rewrites)).difference(words(text))


# --- what is trained on ----------------------------------------------------------------------------------------


def minimal(sentence: str, rewrite: str, rude: frozenset[str] | None) -> str:
    """The sentence with those of the rewrite's changes alone that touch a rude word; all of them where `rude` is None.

    Whatever the two have in common is written as in the sentence, so that the change of a capital is none.
    """
    ours, theirs = sentence.split(), rewrite.split()
    result: list[str] = []
    for kind, start, end, first, last in changes(ours, theirs):
        kept = kind == "equal" or (rude is not None and not is_rude(" ".join(ours[start:end]), rude))
        result += ours[start:end] if kept else [word.lower() for word in theirs[first:last]]
    return " ".join(result)


def changes(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """What makes the one words the others, as `SequenceMatcher.get_opcodes` tells it; case and punctuation are no change."""
    keys = [["".join(words(word)) or word for word in text] for text in (ours, theirs)]
    yield from difflib.SequenceMatcher(None, *keys, autojunk=False).get_opcodes()


def target(sentence: str, rewrites: Sequence[str], rude: frozenset[str]) -> str | None:
    """What is trained for: the least change that a person made, of several the one nearest to all rewrites.

    None where no rewrite is near enough to learn an edit from.
    """
    touched = rude if is_rude(sentence, rude) else None
    near = [one for one in rewrites if touched or word_f1(sentence, one) > FAR]
    return _nearest([minimal(sentence, one, touched) for one in near], sentence, rewrites, rude)


def careful_target(sentence: str, rewrites: Sequence[str], rude: frozenset[str]) -> str | None:
    """As `target`, of the changes alone that take no other word than rude ones.

    Where everybody changed more than that, only the rude words are taken out of what was changed. None for a sentence
    without a rude word, and where people left one.
    """
    if not is_rude(sentence, rude):
        return None
    for edit in (minimal, _cut):
        edits = [edit(sentence, one, rude) for one in rewrites]
        careful = [text for text in edits if others(sentence, rude) <= set(words(text))]
        if (found := _nearest(careful, sentence, rewrites, rude)) is not None:
            return found
    return None


def _cut(sentence: str, rewrite: str, rude: frozenset[str]) -> str:
    """The sentence without the rude words of what the rewrite changed."""
    ours, theirs = sentence.split(), rewrite.split()
    pieces = (
        word
        for kind, start, end, _, _ in changes(ours, theirs)
        for word in ours[start:end]
        if kind == "equal" or not is_rude(word, rude)
    )
    return " ".join(pieces)


def others(sentence: str, rude: frozenset[str]) -> set[str]:
    """The words that are not rude."""
    return set(words(sentence)) - rude


def _nearest(edits: Sequence[str], sentence: str, rewrites: Sequence[str], rude: frozenset[str]) -> str | None:
    polite = [text for text in dict.fromkeys(edits) if text and text != sentence and not is_rude(text, rude)]
    return max(polite, key=lambda text: statistics.mean(word_f1(text, one) for one in rewrites), default=None)


def triples(known: Rewrites, question: str, seed: int) -> list[Triple]:
    """Each sentence with its target, and the rewrites as sentences that need nothing, most of them in small letters."""
    dice, turns = random.Random(seed), (Turn(role="user", text=question),)
    rude = lexicon(known, share=0.7, least=5)
    fixes = {sentence: target(sentence, rewrites, rude) for sentence, rewrites in known.items()}
    keeps = [text if dice.random() < CAPITALS else text.lower() for text in neutral(known)]
    return [
        *(Triple(turns=turns, answer=text, correction=None) for text in keeps),
        *(Triple(turns=turns, answer=text, correction=fix) for text, fix in fixes.items() if fix is not None),
    ]


def neutral(known: Rewrites) -> list[str]:
    """The rewrites, each once; one that is also somebody's rude sentence is none."""
    return [text for text in dict.fromkeys(one for rewrites in known.values() for one in rewrites) if text not in known]
