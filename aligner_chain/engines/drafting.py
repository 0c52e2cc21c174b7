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
GAIN, HALF = 1.6, 4.0
"""What n tokens of a comb bring where `trust` is 1: GAIN * n / (n + HALF) of them. A fit to recorded corrections."""
RUN_SLACK, COMB_SLACK, GUESS_SLACK, FLAT = 0.95, 0.97, 0.5, 1.3
"""Where a forward of 16 tokens costs less than FLAT times one of a single token, forwards count more than tokens, since
each of them costs what no curve shows. Then, of sizes that bring so much of the best rate, the largest is drafted."""
FIRST, FIRST_COST = 256, 8.0
"""Most tokens of a row's first draft, and what it may cost at most, in forwards of one token: nobody knows yet whether the
answer is being rewritten, and where it is copied two drafts cost one forward more than one."""
PLACE, SENTENCE, AFTER_TWO, AFTER_ONE = 4, 4, 8, 3
"""Most tokens of a branch, by the kind of guess."""
FREQUENT = 16
"""Frequent tokens to choose from."""
NEAR = 3
"""How many tokens more or fewer an edit may have written than it replaced, for its end to be recognised by one token."""
EDIT = 3
"""Tokens that an edit may be long for its end to be guessed from its length."""
FOUND, REPLACED = 0.6, 0.3
"""How often a place near the edit behind the same token, and one as many tokens on as were written, turns out right,
before any was tried. By recorded corrections: .15 to .9, and .1 to .5."""
PRIOR, HABIT_STEP, FIRST_STEP = 2.0, 0.05, 0.1
"""How many tries of a row its habits are worth, what the latest try weighs in them, and the latest first draft."""
SILENCE = 3
"""Forwards in a row that wrote no token of the answer, after which only what repeats two tokens is drafted."""
TRUST, TRUST_STEP, RUN_STEP = 0.5, 0.06, 0.25
"""Where `trust` starts, and what the latest forward weighs in it and in `run`."""
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

    def slack(self, share: float) -> float:
        """The share, where tokens cost next to nothing; 1 where they cost time."""
        return share if self.cost(16) < FLAT * self.cost(1) else 1.0


CPU_FP32 = CostCurve.measured({1: 1, 2: 1.02, 4: 1.09, 8: 1.35, 16: 1.8, 32: 2.8, 64: 4.7, 128: 8.8, 256: 17.7})
"""A model of 100M parameters on one CPU core, 300 tokens cached, relative to a forward of one token (19 ms)."""
CPU_BF16 = CostCurve.measured({1: 1, 2: 1.08, 4: 1.1, 8: 1.1, 16: 1.15, 32: 1.3, 64: 1.6, 128: 2.3, 256: 3.6})
"""The same model in bfloat16 on a CPU with matrix units; a GPU is flatter still."""


class Habits:
    """What all rows of an engine have in common: how far an answer is copied, and how edits end.

    An Aligner changes things in its own way, single words or whole sentences, and a row is too short to learn which.
    """

    def __init__(self) -> None:
        self.right = {"found": FOUND, "replaced": REPLACED}
        self.trust = TRUST
        self.whole, self.run = 1.0, RUN_START
        self._rows = 1

    def first(self, run: int, *, whole: bool) -> None:
        """Hears how many tokens an answer was copied from its beginning on, and whether that was all of it."""
        self._rows += 1
        step = max(FIRST_STEP, 1 / self._rows)
        self.whole += step * (whole - self.whole)
        if not whole:
            self.run += step * (run - self.run)

    def learn(self, kind: str, *, right: bool) -> None:
        self.right[kind] += HABIT_STEP * (right - self.right[kind])


@lru_cache(4096)
def first_draft(curve: CostCurve) -> int:
    """Most tokens of a row's first draft."""
    affordable = (1 + FIRST_COST) * curve.cost(1)
    return next((size for size in range(FIRST, 1, -1) if curve.cost(1 + size) <= affordable), 1)


@lru_cache(4096)
def run_length(curve: CostCurve, run: int, beside: int) -> int:
    """The length of a draft that goes on, if `run` of its tokens are right on average."""
    return _largest(
        RUNS, [curve.rate(size, copied(size, run), beside) for size in RUNS], curve.slack(RUN_SLACK), beside
    )


@lru_cache(4096)
def comb_size(curve: CostCurve, trust: float, beside: int) -> int:
    """The tokens of a comb; 0 where none is worth its cost."""
    rates = [curve.rate(size, trust * GAIN * size / (size + HALF), beside) for size in COMBS]
    return _largest(COMBS, rates, curve.slack(COMB_SLACK), beside)


def worth_drafting(curve: CostCurve, right: float, part: int, whole: int, beside: int) -> bool:
    """Whether to draft the whole, which is right with that probability, or only a part (0: nothing) and see first.

    Where the whole is right, seeing first costs this row's share of one forward more; where it is wrong, the rest of it
    costs its tokens.
    """
    rest = curve.cost(beside + 1 + whole) - curve.cost(beside + 1 + part)
    return right * curve.cost(beside + 1) / (beside + 1) > (1 - right) * rest * curve.slack(GUESS_SLACK)


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
        first: Most tokens of the first draft, as far as it pays; None: all of it, whatever it costs. It doubles as long
            as drafts are accepted whole, so that a long answer that turns into a short one costs little.
        habits: What other rows have taught, and where this one adds to it.
    """

    def __init__(
        self,
        original: Sequence[int],
        *,
        context: Sequence[int] = (),
        ends: Set[int] = frozenset(),
        curve: CostCurve,
        first: int | None = FIRST,
        habits: Habits | None = None,
    ) -> None:
        self._eos = original[-1]
        self._end = original.index(self._eos) + 1
        self._stream = [*original[: self._end], *context]  # and the output: what was read, in this order
        self._indexed = 0
        self._ends, self._curve, self._habits = ends, curve, habits or Habits()
        self._anchor = self._gap = 0  # the place of the answer up to which the output follows it; tokens since
        # 0 from the first difference on
        self._reach = self._end if first is None else max(min(first, first_draft(curve)), 1)
        self._whole = first is None
        self._trust, self._run = self._habits.trust, RUN_START
        self._differences = 0
        self._forwards = self._silence = 0
        self._likely = -1  # the place where an edit probably ends
        self._kind = "found"
        self._tries, self._hits = Counter[str](), Counter[str]()  # by the kind of place
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
        place, right = self._most_likely()
        size = self._size(beside)
        drafted = place >= 0 and (right == 1 or worth_drafting(self._curve, right, 0, size, beside))
        trunk = (self._branch(place, min(size, room)),) if drafted else ()
        if self._reach and trunk:
            return trunk
        beside = _rounded(beside + sum(map(len, trunk)))
        trust = self._trust * (1 - right) if self._gap else self._trust / 2
        return (*trunk, *self._comb(comb_size(self._curve, round(trust, 1), beside), room))

    def _size(self, beside: int) -> int:
        """Tokens of a draft that goes on with the answer."""
        if not self._reach:
            return run_length(self._curve, round(self._run), beside)
        if not (self._forwards or self._whole):
            part = run_length(self._curve, round(self._habits.run), beside)
            whole = min(self._reach, self._end)
            self._reach = whole if worth_drafting(self._curve, self._habits.whole, part, whole, beside) else part
        return self._reach

    def _most_likely(self) -> tuple[int, float]:
        """The place of the answer where the text most likely goes on, if any (else -1), and how likely."""
        self._likely = -1
        if not self._gap:
            return (self._anchor, 1.0) if self._anchor < self._end else (-1, 0.0)
        diagonal = self._anchor + self._gap
        last = self._stream[-1]
        places = self._places.get(last, ()) if last not in self._ends else ()  # after a full stop anything may follow
        found = min(places, key=lambda place: abs(place - diagonal), default=-1)
        if found >= 0 and abs(found - diagonal) <= NEAR:
            self._likely, self._kind = found, "found"
        elif self._gap <= EDIT and diagonal < self._end:
            self._likely, self._kind = diagonal, "replaced"
        else:
            return -1, 0.0
        expected = PRIOR * self._habits.right[self._kind] + self._hits[self._kind]
        return self._likely, round(expected / (PRIOR + self._tries[self._kind]), 1)

    def advance(self, tokens: Sequence[int]) -> None:
        """Takes what the model chose: the accepted tokens of a branch and one more, or anything else."""
        # Where nothing was drafted the answer still goes on at the same place.
        place = self._tried.get(tokens[0], -1 if self._tried or self._gap else self._anchor)
        self._learn(tokens[0])
        self._stream += tokens
        self._forwards += 1
        right = self._agreeing(place, tokens)
        straight = place == self._anchor and not self._gap
        known = straight or (place >= 0 and place == self._likely)
        if right == len(tokens) and place + right <= self._end and (known or right > 1):
            self._go_on(place, right)
        else:
            self._diverge(tokens, place, right, known)

    def _learn(self, token: int) -> None:
        """Counts whether the likely end of the edit was right, also where it was not proposed."""
        if self._likely >= 0:
            right = self._stream[self._likely] == token
            self._hits[self._kind] += right
            self._tries[self._kind] += 1
            self._habits.learn(self._kind, right=right)

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
        if self._reach and self._anchor >= self._end - 1:
            self._habits.first(self._anchor, whole=True)
        self._reach *= 2
        self._run = max(self._run, min(RUN_GROWTH * right, RUN_MOST))
        self._believe(guessed=True)

    def _diverge(self, tokens: Sequence[int], place: int, right: int, known: bool) -> None:
        """Looks for the place again; a single right token may be chance and moves nothing, unless the place was known."""
        if self._tried and (known or right or not self._gap):
            self._differences += 1
            self._run += max(RUN_STEP, 1 / (self._differences + 1)) * (min(right, RUN_MOST) - self._run)
        if self._reach:
            self._habits.first(self._anchor + right, whole=False)
        self._reach = 0
        if (known and (right or not self._gap)) or (right > 1 and place < self._end):
            self._anchor, self._gap = place + right, len(tokens) - right
        else:
            self._gap += len(tokens)
        self._index()
        places = self._pairs.get((self._stream[-2], self._stream[-1]), [])
        self._align(places)
        familiar = right or not self._places.keys().isdisjoint(tokens)
        self._silence = 0 if familiar else self._silence + 1
        self._believe(guessed=bool(right or places))

    def _align(self, places: list[int]) -> None:
        """Moves to the nearest place of the answer behind the last three tokens, if there is one."""
        third, stream = self._stream[-3:-2], self._stream
        same = [place for place in places if stream[place - 3 : place - 2] == third]
        if same:
            self._anchor, self._gap = min(same, key=lambda place: abs(place - self._anchor)), 0

    def _believe(self, *, guessed: bool) -> None:
        self._trust += TRUST_STEP * (guessed - self._trust)
        self._habits.trust += HABIT_STEP * TRUST_STEP * (guessed - self._habits.trust)

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
            yield from self._ends_of_edit()
        if last in self._ends and self._gap:
            yield from self._next_sentence()
        for place in reversed(self._after.get(last, {}).values()):
            yield place, AFTER_ONE
        for place in self._frequent:
            yield place, 1

    def _ends_of_edit(self) -> Iterator[tuple[int, int]]:
        """Right behind an edit: a token replaced by as many, one more, or none."""
        for place in (self._anchor + self._gap, self._anchor, self._anchor + self._gap + 1):
            if place < self._end:
                yield place, PLACE

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
