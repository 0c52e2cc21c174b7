"""What the decoders have to write: synthetic answers with corrections, from exact copies to full rewrites.

A row's tokens say which row they belong to: of R rows that decode together, row b has only token ids that leave b when
divided by R. So whoever sees a token and its position knows what has to follow it, in any batch and any packing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

VOCABULARY = 8192
"""Token ids of texts end here; a model may know more."""
PAD, BOS, EOS, KEEP, FIX = range(5)
QUESTION, ANSWER, OUTPUT, PERIOD = 32, 64, 96, 128
"""The frame's tokens and what ends a sentence; each has a range of 32, one for every row of a batch."""
FIRST = 160
"""The first token id that stands for a word."""
MOST_ROWS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Token ids of one question with its answer, and of the correction. `spans` are the answer's characters."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    correction: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def max_new(self) -> int:
        """Room for a correction that is somewhat longer than the answer, as an Aligner gets it."""
        return max(len(self.answer), len(self.correction)) + 64


Case = tuple[Row, ...]
"""Rows that are decoded together; most cases have one."""
WARM_UP = 10
"""Cases to warm up with: more than our engine remembers rows, so that from then on it uses their memory again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Cases of one kind, each measured once at most, and others to warm up with.

    So no decoder sees a prompt again of which it may have kept something.

    `tokenizer` made the ids; without one each id is a word. With `verdict` our decoder's model writes KEEP where the others' model copies the answer. `callers` are threads that
    submit one row each; without them one caller submits all rows of a case.
    """

    name: str
    cases: tuple[Case, ...]
    warm_up: tuple[Case, ...]
    verdict: bool = False
    callers: bool = False
    tokenizer: Any = None
    note: str = ""

    @property
    def rows(self) -> int:
        """Rows decoded together, at most."""
        return max(map(len, self.warm_up))


class Writer:
    """Writes tokens that repeat themselves about as natural text does: Zipf's law, common pairs, sentences.

    Random tokens would flatter every decoder that looks for repeated n-grams, as they repeat only in the copy. Writes
    only ids that leave `remainder` when divided by `modulus`.
    """

    def __init__(self, random: Random, remainder: int = 0, modulus: int = 1) -> None:
        self._random = random
        self._words = range(FIRST + remainder, VOCABULARY, modulus)
        self._period = PERIOD + remainder
        self._weights = tuple(accumulate(1 / (rank + 2.7) for rank in range(1, len(self._words) + 1)))
        self._followers: dict[int, list[int]] = {}

    def tokens(self, count: int) -> list[int]:
        """As many tokens; sentences have 11 on average."""
        written: list[int] = []
        since = 0
        while len(written) < count:
            ends = since >= 6 and self._random.random() < 0.2
            since = 0 if ends else since + 1
            written.append(self._period if ends else self._word(written))
        return written

    def text(self, count: int) -> list[int]:
        """As many tokens, the last of which ends a sentence."""
        return [*self.tokens(count - 1), self._period]

    def sentence(self) -> list[int]:
        return [*self._random.choices(self._words, cum_weights=self._weights, k=10), self._period]

    def _word(self, written: Sequence[int]) -> int:
        """Almost every second word is one of the three that often follow the last one."""
        if not written or self._random.random() > 0.45:
            return self._random.choices(self._words, cum_weights=self._weights)[0]
        if written[-1] not in self._followers:
            self._followers[written[-1]] = self._random.choices(self._words, cum_weights=self._weights, k=3)
        return self._random.choice(self._followers[written[-1]])


def row(question: Sequence[int], answer: Sequence[int], correction: Sequence[int], number: int = 0) -> Row:
    """The row with the prompt that an Aligner reads: question and answer, each behind its token of the frame."""
    ends = list(accumulate(len(f" w{token}") for token in answer))
    return Row(
        prompt=(QUESTION + number, *question, ANSWER + number, *answer, OUTPUT + number),
        answer=tuple(answer),
        correction=tuple(correction),
        spans=tuple(zip([0, *ends[:-1]], ends, strict=True)),
    )


def edited(answer: Sequence[int], spans: int, writer: Writer, random: Random) -> list[int]:
    """The answer with 1 to 4 tokens replaced by 1 to 4 new ones, at `spans` places that are spread over it."""
    corrected = list(answer)
    share = len(answer) // max(1, spans)
    for place in reversed(range(spans)):
        start = place * share + random.randint(1, share - 6)
        old = corrected[start : start + random.randint(1, 4)]
        corrected[start : start + len(old)] = _other(old, writer, random)
    return corrected


def _other(old: Sequence[int], writer: Writer, random: Random) -> list[int]:
    """New tokens that share neither their first nor their last one with the old, so that all of the span is edited."""
    while True:
        new = writer.tokens(random.randint(1, 4))
        if new[0] != old[0] and new[-1] != old[-1]:
            return new


def _copy(random: Random) -> Case:
    writer = Writer(random)
    answer = writer.text(128)
    return (row(writer.tokens(80), answer, answer),)


def _edits(spans: int, length: int) -> Callable[[Random], Case]:
    def case(random: Random) -> Case:
        writer = Writer(random)
        answer = writer.text(length)
        return (row(writer.tokens(80), answer, edited(answer, spans, writer, random)),)

    return case


def _sentence_deleted(random: Random) -> Case:
    writer = Writer(random)
    before, gone, after = writer.text(58), writer.sentence(), writer.text(59)
    return (row(writer.tokens(80), before + gone + after, before + after),)


def _sentence_inserted(random: Random) -> Case:
    writer = Writer(random)
    before, new, after = writer.text(64), writer.sentence(), writer.text(64)
    return (row(writer.tokens(80), before + after, before + new + after),)


def _replaced(answer: int, correction: int) -> Callable[[Random], Case]:
    """Another text altogether: not one token is the answer's or the question's."""

    def case(random: Random) -> Case:
        asked, corrected = Writer(random, 0, 2), Writer(random, 1, 2)
        return (row(asked.tokens(80), asked.text(answer), corrected.text(correction)),)

    return case


def _light(rows: int) -> Callable[[Random], Case]:
    """Prompts of 100 to 200 tokens, of which 37 are the question; up to two edits."""

    def case(random: Random) -> Case:
        return tuple(_light_row(random, number, rows) for number in range(rows))

    return case


def _light_row(random: Random, number: int, rows: int) -> Row:
    writer = Writer(random, number, rows)
    answer = writer.text(random.randint(60, 160))
    correction = edited(answer, random.choice((0, 1, 1, 2)), writer, random)
    return row(writer.tokens(37), answer, correction, number)


_CASES: Mapping[str, Callable[[Random], Case]] = {
    "copy_128": _copy,
    "copy_128_verdict": _copy,
    "edits_1": _edits(1, 128),
    "edits_3": _edits(3, 128),
    "edits_6": _edits(6, 256),
    "sentence_deleted": _sentence_deleted,
    "sentence_inserted": _sentence_inserted,
    "rewrite": _replaced(128, 128),
    "refusal": _replaced(512, 20),
    "batch_8_light": _light(8),
    "callers_32_light": _light(MOST_ROWS),
}
SYNTHETIC = tuple(_CASES)

_NOTES = {
    "copy_128_verdict": "The others' model has no verdict and writes the whole copy, which is what is served; ours "
    "writes KEEP, and the answer is served. Tokens per forward are of what is served.",
}


def synthetic(name: str, pairs: int, seed: int) -> Workload:
    """A case for every pair, and those to warm up."""
    cases = tuple(_CASES[name](Random(f"{seed}:{name}:{number}")) for number in range(WARM_UP + pairs))
    return Workload(
        name=name,
        cases=cases[WARM_UP:],
        warm_up=cases[:WARM_UP],
        verdict=name.endswith("_verdict"),
        callers=name.startswith("callers_"),
        note=_NOTES.get(name, ""),
    )


def edit_ratio(case: Case) -> float:
    """The least number of tokens to insert, delete or replace, as a share of the longer of answer and correction."""
    edits = sum(distance(one.answer, one.correction) for one in case)
    return edits / sum(max(len(one.answer), len(one.correction)) for one in case)


def distance(left: Sequence[int], right: Sequence[int]) -> int:
    """Levenshtein's distance."""
    above = list(range(len(right) + 1))
    for number, token in enumerate(left, 1):
        line = [number]
        for place, other in enumerate(right):
            line.append(min(above[place] + (token != other), above[place + 1] + 1, line[place] + 1))
        above = line
    return above[-1]
