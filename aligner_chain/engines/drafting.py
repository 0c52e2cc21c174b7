"""Guesses how a correction goes on, so that one forward can check many tokens instead of making one.

A correction mostly copies the answer, so the answer itself is the draft: the first proposal is all of it, and where the
model agrees to the end the whole correction costs one forward. After an edit nobody knows where in the answer the model
will go on. Then the proposal is a comb: several short branches behind the last token that start with different tokens,
so that the model's own choice of the next token picks the branch, and the rest is thrown away. Best guesses come first:

1. places of the answer behind the same two tokens, nearest first;
2. what followed these two tokens in the answer, the prompt or the output, latest first;
3. right behind an edit, a place a few tokens on where the last token stands (something was deleted), then the place
   as many tokens on as were written (something was replaced);
4. at the end of a sentence, the answer's next sentence;
5. what followed the last token in the answer, the prompt or the output, latest first;
6. the answer's most frequent tokens, alone.

How much is drafted follows from what a forward costs (`CostCurve`) and from two running measures of the row: `trust`,
how often the next token was one that could be guessed, and `run`, how many tokens of a draft that went on were right.
Nothing here has to be right: the model verifies every proposal, and a bad one costs time and nothing else.

The idea is aggressive decoding, which drafts the input and finds its place again after each difference (Sun et al. 2021,
arXiv 2106.04970; Ge et al. 2022, arXiv 2205.10350). Drafting what followed the same tokens before is that of LLMA (Yang
et al. 2023, arXiv 2304.04487) and of prompt lookup decoding; code editors know it as speculative edits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

Branch = tuple[int, ...]

RUNS = (1, 2, 3, 4, 6, 8, 12, 15, 23, 31, 47, 63, 95, 127, 191, 255)
"""Lengths of a draft that goes on with the answer, to choose from."""
COMBS = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63, 95)
"""Sizes of a comb, in tokens, to choose from."""
GAIN, HALF, COPIED = 2.5, 4.0, 0.05
"""What n tokens of a comb bring where `trust` is 1: GAIN * n / (n + HALF) of them, and right behind an edit COPIED times
those that a run of that length brings. A fit to recorded corrections."""
RUN_SLACK, EDIT_SLACK, COMB_SLACK = 0.95, 0.95, 0.98
"""Of sizes that bring at least so much of the best rate the largest is drafted: it saves forwards, and each of them costs
what no curve shows. For a draft that goes on, for a comb behind an edit, and for any other comb."""
REPLACED, PLACE, SENTENCE, AFTER_TWO, AFTER_ONE = 64, 4, 4, 8, 3
"""Most tokens of a branch, by the kind of guess."""
FREQUENT = 16
"""Frequent tokens to choose from."""
NEAR = 8
"""Tokens from the edit to the farthest place that counts as a deletion."""
EDIT = 3
"""Tokens that an edit may be long for its end to be guessed from its length."""
SILENCE = 3
"""Forwards in a row that wrote no token of the answer, after which only what repeats two tokens is drafted."""
TRUST_STEP, RUN_STEP = 0.06, 0.25
"""What the latest forward weighs in `trust` and in `run`."""
RUN_START, RUN_MOST, RUN_GROWTH = 32.0, 255, 4
"""Where `run` starts, its limit, and how many times as long a draft may be as one that was accepted whole."""


@dataclass(frozen=True, eq=False)
class CostCurve:
    """What a forward over so many tokens costs, in seconds or in any other unit, from measured points.

    It is a line between two points, goes on as a line beyond the last, and never falls: where a measurement does,
    that is noise.
    """

    points: tuple[tuple[int, float], ...]

    @classmethod
    def measured(cls, points: Mapping[int, float]) -> CostCurve:
        """Makes a curve of {tokens: cost}. Raises `ValueError` where there is no point or a cost of nothing."""
        if not points or min(points.values()) <= 0:
            raise ValueError(f"a cost curve needs points with costs above 0, got {dict(points)}")
        ordered, most = [], 0.0
        for tokens, cost in sorted(points.items()):
            most = max(most, cost)
            ordered.append((tokens, most))
        return cls(tuple(ordered))

    def cost(self, tokens: int) -> float:
        if tokens <= self.points[0][0] or len(self.points) == 1:
            return self.points[0][1]
        right = min(bisect_left(self.points, (tokens,)), len(self.points) - 1)
        (low, cheap), (high, dear) = self.points[right - 1], self.points[right]
        return cheap + (dear - cheap) * (tokens - low) / (high - low)

    def rate(self, draft: int, gain: float, beside: int) -> float:
        """Tokens per cost of a forward in which `draft` tokens bring `gain`, and each other token brings itself."""
        return (beside + 1 + gain) / self.cost(beside + 1 + draft)


CPU_FP32 = CostCurve.measured({1: 1, 2: 1.08, 4: 1.7, 8: 2.2, 16: 2.2, 32: 2.8, 64: 3.8, 128: 5.6, 256: 9.9})
"""A model of 100M parameters on one CPU core, 300 tokens cached, relative to a forward of one token."""
CPU_BF16 = CostCurve.measured({1: 1, 2: 1.08, 4: 1.1, 8: 1.1, 16: 1.15, 32: 1.3, 64: 1.6, 128: 2.3, 256: 3.6})
"""The same model in bfloat16 on a CPU with matrix units; a GPU is flatter still."""


@lru_cache(4096)
def run_length(curve: CostCurve, run: int, beside: int) -> int:
    """The length of a draft that goes on, if `run` of its tokens are right on average."""
    return _largest(RUNS, [curve.rate(size, copied(size, run), beside) for size in RUNS], RUN_SLACK, beside)


@lru_cache(4096)
def comb_size(curve: CostCurve, trust: float, beside: int, run: int = 0) -> int:
    """The tokens of a comb, with `run` if it stands right behind an edit; 0 where no comb is worth its cost."""
    gains = [trust * (GAIN * size / (size + HALF) + COPIED * copied(size, run)) for size in COMBS]
    rates = [curve.rate(size, gain, beside) for size, gain in zip(COMBS, gains, strict=True)]
    return _largest(COMBS, rates, EDIT_SLACK if run else COMB_SLACK, beside)


def copied(size: int, run: int) -> float:
    """How many of `size` tokens are right before the first wrong one, if without a limit `run` of them are."""
    return run * (1 - (run / (run + 1)) ** size)


def _largest(sizes: Sequence[int], rates: Sequence[float], slack: float, beside: int) -> int:
    """The slack is this row's: of the rate of a full batch its share is small."""
    least = max(rates) * (1 - (1 - slack) / (beside + 1))
    return max(size for size, rate in zip(sizes, rates, strict=True) if rate >= least)


class Drafter:
    """Proposes branches for one row; the decoder verifies them and says with `advance` what the model chose.

    Args:
        original: The answer as it would stand in the output, with the id that ends a text behind it.
        context: The prompt; read only where an edit turns out to be longer than a few tokens.
        ends: Ids of tokens at which a sentence or a line ends.
        curve: What a forward costs.
        first: Most tokens of the first draft. It doubles as long as drafts are accepted whole, so that a long answer
            that turns into a short one costs little.
    """

    def __init__(
        self,
        original: Sequence[int],
        *,
        context: Sequence[int] = (),
        ends: Set[int] = frozenset(),
        curve: CostCurve,
        first: int = 256,
    ) -> None:
        self._eos = original[-1]
        self._end = original.index(self._eos) + 1
        self._stream = [*original[: self._end], *context]  # and the output: what was read, in this order
        self._indexed = 0
        self._ends, self._curve = ends, curve
        self._anchor = self._gap = 0  # the place of the answer up to which the output follows it; tokens since
        self._reach = max(first, 1)  # 0 from the first difference on
        self._trust, self._run = 1.0, RUN_START
        self._differences = 0
        self._forwards = self._silence = 0
        self._tried: dict[int, int] = {}  # the first token of each branch, and its place in the stream
        self._places: dict[int, list[int]] = defaultdict(list)  # of the answer, behind a token
        self._pairs: dict[Branch, list[int]] = defaultdict(list)  # of the answer, behind two tokens
        self._after: dict[int | Branch, dict[int, int]] = defaultdict(dict)  # behind one or two tokens: token, place
        self._sentences: list[int] = []  # places of the answer
        self._frequent: tuple[int, ...] = ()

    def propose(self, room: int, beside: int = 0) -> tuple[Branch, ...]:
        """The branches to verify behind the last token; none where a forward of one token is the best bet.

        Args:
            room: Most tokens of a branch.
            beside: Tokens of other rows in the same forward.
        """
        self._tried = {}
        if room < 1:
            return ()
        beside = _rounded(beside)
        if self._gap or self._anchor >= self._end:
            run = round(self._run) if 0 < self._gap <= EDIT else 0
            return tuple(self._comb(comb_size(self._curve, round(self._trust, 1), beside, run), room))
        size = self._reach or run_length(self._curve, round(self._run), beside)
        trunk = self._branch(self._anchor, min(size, room))
        if self._reach:
            return (trunk,)
        size = comb_size(self._curve, round(self._trust / 2, 1), _rounded(beside + len(trunk)))
        return (trunk, *self._comb(size, room))

    def advance(self, tokens: Sequence[int]) -> None:
        """Takes what the model chose: the accepted tokens of a branch and one more, or anything else."""
        place = self._tried.get(tokens[0], -1)
        self._stream += tokens
        self._forwards += 1
        right = self._agreeing(place, tokens)
        straight = place == self._anchor and not self._gap
        if right == len(tokens) and place + right <= self._end and (straight or right > 1):
            self._go_on(place, right)
        else:
            self._diverge(tokens, place, right, straight)

    def _branch(self, place: int, size: int) -> Branch:
        """Notes what of the stream is proposed; nothing stands behind an end of text."""
        token = self._stream[place]
        self._tried[token] = place
        if size == 1:
            return (token,)
        stop = min(place + size, self._end) if place < self._end else place + size
        branch = tuple(self._stream[place:stop])
        return branch[: branch.index(self._eos) + 1] if self._eos in branch else branch

    def _agreeing(self, place: int, tokens: Sequence[int]) -> int:
        """How many of the tokens stand in the stream from `place` on."""
        if place < 0:
            return 0
        if self._stream[place : place + len(tokens)] == list(tokens):
            return len(tokens)
        pairs = enumerate(zip(tokens, self._stream[place:], strict=False))
        return next(count for count, (token, drafted) in pairs if token != drafted)

    def _go_on(self, place: int, right: int) -> None:
        self._anchor, self._gap, self._silence = place + right, 0, 0
        self._reach *= 2
        self._run = max(self._run, min(RUN_GROWTH * right, RUN_MOST))
        self._believe(guessed=True)

    def _diverge(self, tokens: Sequence[int], place: int, right: int, straight: bool) -> None:
        """Looks for the place again; a single right token may be chance and moves nothing."""
        if self._tried and (straight or right or not self._gap):
            self._differences += 1
            self._run += max(RUN_STEP, 1 / (self._differences + 1)) * (min(right, RUN_MOST) - self._run)
        self._reach = 0
        if straight or (right > 1 and place < self._end):
            self._anchor, self._gap = place + right, len(tokens) - right
        else:
            self._gap += len(tokens)
        self._index()
        places = self._pairs.get((self._stream[-2], self._stream[-1]), [])
        self._align(places)
        known = right or not self._places.keys().isdisjoint(tokens)
        self._silence = 0 if known else self._silence + 1
        self._believe(guessed=bool(right or places))

    def _align(self, places: list[int]) -> None:
        """Moves to the nearest place of the answer behind the last three tokens, if there is one."""
        third, stream = self._stream[-3:-2], self._stream
        same = [place for place in places if stream[place - 3 : place - 2] == third]
        if same:
            self._anchor, self._gap = min(same, key=lambda place: abs(place - self._anchor)), 0

    def _believe(self, *, guessed: bool) -> None:
        self._trust += max(TRUST_STEP, 1 / (self._forwards + 1)) * (guessed - self._trust)

    def _comb(self, left: int, room: int) -> Iterator[Branch]:
        """Branches with different first tokens, best first, of `left` tokens in all."""
        if left:
            for place, size in self._guesses():
                if self._stream[place] not in self._tried:
                    branch = self._branch(place, min(size, left, room))
                    yield branch
                    left -= len(branch)
                    if not left:
                        return

    def _guesses(self) -> Iterator[tuple[int, int]]:
        """Places where the text may go on, best first, and the most tokens worth drafting there."""
        two, last = (self._stream[-2], self._stream[-1]), self._stream[-1]
        if two in self._pairs:
            places = self._pairs[two]
            nearest = bisect_left(places, self._anchor)
            for place in places[max(nearest - 1, 0) : nearest + 2]:
                yield place, PLACE
        for place in reversed(self._after.get(two, {}).values()):
            yield place, AFTER_TWO
        if self._silence >= SILENCE:
            return
        if 0 < self._gap <= EDIT:
            yield from self._ends_of_edit(last)
        if last in self._ends and self._gap:
            yield from self._next_sentence()
        for place in reversed(self._after.get(last, {}).values()):
            yield place, AFTER_ONE
        for place in self._frequent:
            yield place, 1

    def _ends_of_edit(self, last: int) -> Iterator[tuple[int, int]]:
        long = max(1, min(REPLACED, int(self._run)))
        places = self._places.get(last, [])
        nearest = bisect_left(places, self._anchor + 1)
        for place in places[nearest : nearest + 3]:
            if place <= self._anchor + NEAR:
                yield place, max(2, long // 2)
        if self._anchor + self._gap < self._end:
            yield self._anchor + self._gap, long

    def _next_sentence(self) -> Iterator[tuple[int, int]]:
        following = bisect_left(self._sentences, self._anchor)
        for place in self._sentences[following : following + 1]:
            yield place, SENTENCE

    def _index(self) -> None:
        """Reads on to the end of the stream."""
        stream, after = self._stream, self._after
        if not self._places:
            self._index_answer()
        if not self._after and self._gap <= EDIT:
            return  # the place is often found before the prompt is needed
        for place in range(max(self._indexed, 2), len(stream)):
            token, last = stream[place], stream[place - 1]
            for before in (last, (stream[place - 2], last)):
                followers = after[before]
                if token in followers:  # a dictionary keeps its order: the latest shall come last
                    del followers[token]
                followers[token] = place
        self._indexed = len(stream)

    def _index_answer(self) -> None:
        answer = self._stream[: self._end]
        for place in range(1, self._end):
            self._places[answer[place - 1]].append(place)
            if place > 1:
                self._pairs[answer[place - 2], answer[place - 1]].append(place)
        self._sentences = [place for place in range(1, self._end) if answer[place - 1] in self._ends]
        frequent = Counter(answer).most_common(FREQUENT)
        self._frequent = tuple(answer.index(token) for token, _ in frequent)


def _rounded(tokens: int) -> int:
    """Three leading binary digits of it, so that plans are made once for many sizes of a batch."""
    shift = max(tokens.bit_length() - 3, 0)
    return tokens >> shift << shift
