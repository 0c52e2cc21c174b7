"""How many tokens a forward brings when the answer drafts its own correction: a replay of recorded corrections.

    python benchmarks/draft_replay.py [--data ../shared/data] [--part dev] [--rows 5000] [--beside 0] [--quick]

No model runs. The recorded correction stands for what the model would choose, the drafter proposes, and what agrees is
accepted, as a decoder would do it. Two yardsticks: plain decoding, one token a forward; and an oracle that knows the
correction and drafts, in each forward, the longest run of the answer that comes next. `ratio` is the drafter's tokens per
forward over the oracle's, pooled over the rows, with a bootstrap interval over rows. `speed` is estimated from a cost
curve: the cost of plain decoding over that of all forwards with all drafted tokens, decoding alone, without the prompt.
`speed_on_fp32` is that of the same drafts on a CPU in fp32: what it would cost there to draft as if tokens cost nothing.

Beside the recorded sets stand answers with edits made for the purpose. The folder of data has one folder a set, each with
train.jsonl and dev.jsonl (`question`, `answer`, `correction`); the tokenizer, a byte-level BPE, is trained on the train
parts. Times are processor time of this thread. Prints a table, writes benchmarks/results/draft_replay.json.
"""

from __future__ import annotations

import argparse
import difflib
import json
import platform
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stored
from tokenizers import ByteLevelBPETokenizer

from aligner_chain import __version__
from aligner_chain.engines.drafting import CPU_BF16, CPU_FP32, CostCurve, Drafter, Habits

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = ("debugbench_python", "aligner2b_recorded", "gsm8k_solutions", "paradetox")
TARGETS = {"debugbench_python": 0.75, "aligner2b_recorded": 0.70}
MADE_FROM = "aligner2b_recorded"
FLAT = CostCurve.measured({1: 1, 16: 1.01, 64: 1.05, 128: 1.1, 256: 1.5})
"""Assumed, not measured: a large GPU, which reads all weights for one token and for a hundred."""
CURVES = {"flat": FLAT, "bf16": CPU_BF16, "fp32": CPU_FP32}
SEED, RESAMPLES = 0, 1000

Ids = list[int]


@dataclass
class Row:
    """Token ids; `answer` and `correction` end with the id that ends a text."""

    context: Ids
    answer: Ids
    correction: Ids
    oracle_forwards: int = field(init=False)

    def __post_init__(self) -> None:
        self.oracle_forwards = oracle(self.answer, self.correction)


@dataclass
class Replay:
    """What came of one row."""

    row: Row
    forwards: int = 0
    drafted: int = 0
    cost: float = 0.0
    cpu_cost: float = 0.0
    seconds: float = 0.0


class Texts:
    """Reads the sets and turns their texts into token ids."""

    def __init__(self, data: Path, rows: int) -> None:
        self._data, self._rows = data, rows
        self._bpe = ByteLevelBPETokenizer()
        self._bpe.train_from_iterator(self._train_texts(), vocab_size=32_000, show_progress=False)
        self.eos = self._bpe.get_vocab_size()
        self.ends = {i for i in range(self.eos) if self._bpe.decode([i]).endswith((".", "!", "?", ":", "\n"))}

    def records(self, name: str, part: str) -> list[dict[str, str]]:
        lines = (self._data / name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return records if len(records) <= self._rows else random.Random(SEED).sample(records, self._rows)

    def rows(self, name: str, part: str) -> list[Row]:
        return [self._row(record) for record in self.records(name, part)]

    def _row(self, record: dict[str, str]) -> Row:
        question, answer, correction = (
            self._bpe.encode(record.get(key, "")).ids for key in ("question", "answer", "correction")
        )
        return Row([*question, *answer], [*answer, self.eos], [*correction, self.eos])

    def refusal(self) -> Ids:
        return [*self._bpe.encode("I'm sorry, but I can't help with that.").ids, self.eos]

    def _train_texts(self) -> Iterator[str]:
        for name in SETS:
            for record in self.records(name, "train"):
                yield from (record.get(key, "") for key in ("question", "answer", "correction"))


def oracle(answer: Sequence[int], correction: Sequence[int]) -> int:
    """Forwards of a copier that knows what comes: the longest run of the answer, and the token behind it."""
    places = defaultdict(list)
    for place, token in enumerate(answer):
        places[token].append(place)
    written = forwards = 0
    while written < len(correction):
        runs = [agreeing(answer[place:], correction[written:]) for place in places[correction[written]]]
        written += max(runs, default=0) + 1
        forwards += 1
    return forwards


def agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning of both are the same."""
    for count, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return count
    return min(len(one), len(other))


def replay(row: Row, curve: CostCurve, ends: set[int], beside: int, habits: Habits) -> Replay:
    result, written = Replay(row), 0
    start = time.thread_time()
    drafter = Drafter(row.answer, context=row.context, ends=ends, curve=curve, habits=habits)
    result.seconds += time.thread_time() - start
    while written < len(row.correction):
        start = time.thread_time()
        branches = drafter.propose(len(row.correction), beside=beside)
        result.seconds += time.thread_time() - start
        chosen = chosen_tokens(branches, row.correction[written:])
        count(result, branches, curve, beside)
        written += len(chosen)
        start = time.thread_time()
        drafter.advance(chosen)
        result.seconds += time.thread_time() - start
    return result


def chosen_tokens(branches: Iterable[Sequence[int]], coming: Ids) -> Ids:
    """What a decoder would hand back: the accepted tokens and one more."""
    accepted = max((agreeing(branch, coming) for branch in branches), default=0)
    return coming[: accepted + 1]


def count(result: Replay, branches: Sequence[Sequence[int]], curve: CostCurve, beside: int) -> None:
    """A row bears what its tokens add to a forward, and its share of what the forward costs anyway."""
    drafted = sum(map(len, branches))
    result.forwards += 1
    result.drafted += drafted
    result.cost += cost(curve, drafted, beside)
    result.cpu_cost += cost(CPU_FP32, drafted, beside)


def cost(curve: CostCurve, drafted: int, beside: int) -> float:
    return curve.cost(beside + 1) / (beside + 1) + curve.cost(beside + 1 + drafted) - curve.cost(beside + 1)


def figures(replays: list[Replay], curve: CostCurve, beside: int) -> dict[str, Any]:
    tokens = sum(len(each.row.correction) for each in replays)
    forwards = sum(each.forwards for each in replays)
    oracle_forwards = sum(each.row.oracle_forwards for each in replays)
    plain = cost(curve, 0, beside)
    return {
        "rows": len(replays),
        "tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": round(tokens / forwards, 3),
        "oracle_tokens_per_forward": round(tokens / oracle_forwards, 3),
        "ratio": round(oracle_forwards / forwards, 3),
        "ratio_95": [round(bound, 3) for bound in bootstrap(replays)],
        "drafted_per_token": round(sum(each.drafted for each in replays) / tokens, 2),
        "speed_pooled": round(tokens * plain / sum(each.cost for each in replays), 2),
        "speed_on_fp32": round(tokens * cost(CPU_FP32, 0, beside) / sum(each.cpu_cost for each in replays), 2),
        "speed_mean": round(statistics.mean(len(each.row.correction) * plain / each.cost for each in replays), 2),
        "exact_copies": round(statistics.mean(each.row.answer == each.row.correction for each in replays), 3),
        "edit_ratio": round(statistics.mean(edit_ratio(each.row) for each in replays), 3),
        "us_per_step": round(sum(each.seconds for each in replays) / forwards * 1e6, 1),
    }


def bootstrap(replays: list[Replay]) -> tuple[float, float]:
    """The 95 % interval of the ratio when rows are drawn anew."""
    pairs, dice = [(each.row.oracle_forwards, each.forwards) for each in replays], random.Random(SEED)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = dice.choices(pairs, k=len(pairs))
        ratios.append(sum(pair[0] for pair in drawn) / sum(pair[1] for pair in drawn))
    ratios.sort()
    return ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]


def edit_ratio(row: Row) -> float:
    """The share of tokens that no alignment of the two texts keeps: 0 is a copy, 1 a text without one of its words."""
    return 1 - difflib.SequenceMatcher(None, row.answer, row.correction, autojunk=False).ratio()


def made(rows: list[Row], texts: Texts) -> dict[str, list[Row]]:
    """Answers with edits made for the purpose, of one kind each."""
    dice = random.Random(SEED)

    def edited(edit: Callable[[Ids, Ids], Ids]) -> list[Row]:
        others = [*rows[1:], rows[0]]
        pairs = zip(rows, others, strict=True)
        return [Row(row.context, row.answer, edit(list(row.answer), other.answer)) for row, other in pairs]

    def spans(number: int) -> Callable[[Ids, Ids], Ids]:
        return lambda answer, other: with_spans(answer, other, number, dice)

    def deleted(answer: Ids, other: Ids) -> Ids:
        sentences = split(answer, texts.ends)
        sentences.pop(dice.randrange(max(len(sentences) - 1, 1)))
        return [*(token for sentence in sentences for token in sentence if token != texts.eos), texts.eos]

    def inserted(answer: Ids, other: Ids) -> Ids:
        sentences = split(answer, texts.ends)
        sentences.insert(dice.randrange(len(sentences)), dice.choice(split(other[:-1], texts.ends)))
        return [token for sentence in sentences for token in sentence]

    return {
        "copy": edited(lambda answer, other: answer),
        "1 span edited": edited(spans(1)),
        "3 spans edited": edited(spans(3)),
        "6 spans edited": edited(spans(6)),
        "sentence deleted": edited(deleted),
        "sentence inserted": edited(inserted),
        "another answer": edited(lambda answer, other: list(other)),
        "short refusal": edited(lambda answer, other: texts.refusal()),
    }


def with_spans(answer: Ids, other: Ids, number: int, dice: random.Random) -> Ids:
    """Puts 0 to 3 tokens of another answer in the place of 0 to 3 tokens, in so many places."""
    for _ in range(number):
        start, place = dice.randrange(len(answer)), dice.randrange(len(other))
        stop = min(start + dice.randrange(4), len(answer) - 1)
        answer[start:stop] = other[:-1][place : place + dice.randrange(4)]
    return answer


def split(tokens: Ids, ends: set[int]) -> list[Ids]:
    sentences: list[Ids] = [[]]
    for token in tokens:
        sentences[-1].append(token)
        if token in ends:
            sentences.append([])
    return [sentence for sentence in sentences if sentence] or [[]]


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        f"{'':<20}{'':<6}{'tok/fwd':>9}{'oracle':>9}{'ratio':>7}{'95 %':>15}{'drafted':>9}{'speed':>7}{'mean':>7}{'us':>6}"
    ]
    for name, curves in results.items():
        for curve, each in curves.items():
            low, high = each["ratio_95"]
            lines.append(
                f"{name:<20}{curve:<6}{each['tokens_per_forward']:>9.2f}{each['oracle_tokens_per_forward']:>9.2f}"
                f"{each['ratio']:>7.3f}{f'{low:.3f}-{high:.3f}':>15}{each['drafted_per_token']:>9.2f}"
                f"{each['speed_pooled']:>7.2f}{each['speed_mean']:>7.2f}{each['us_per_step']:>6.1f}"
            )
    for name, target in TARGETS.items():
        met = {curve: each["ratio"] >= target for curve, each in results[name].items()}
        lines.append(f"{name}: at least {target} of the oracle's tokens per forward: {met}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--part", choices=("train", "dev"), default="dev")
    parser.add_argument("--rows", type=int, default=20_000, help="most rows of a set")
    parser.add_argument("--beside", type=int, default=0, help="tokens of other rows in each forward")
    parser.add_argument("--quick", action="store_true", help="30 rows of each set, to see that it runs; no file")
    arguments = parser.parse_args()
    texts = Texts(arguments.data, 30 if arguments.quick else arguments.rows)
    sets = {name: texts.rows(name, arguments.part) for name in SETS}
    sets |= made(sets[MADE_FROM], texts)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, rows in sets.items():
        for label, curve in CURVES.items():
            habits = Habits()  # as in an engine, rows learn from those before
            replays = [replay(row, curve, texts.ends, arguments.beside, habits) for row in rows]
            results.setdefault(name, {})[label] = figures(replays, curve, arguments.beside)
    print(table(results))
    if not arguments.quick:
        write(results, arguments)


def write(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    document = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "aligner_chain": __version__,
        "part": arguments.part,
        "beside": arguments.beside,
        "seed": SEED,
        "resamples": RESAMPLES,
        "curves": {label: dict(curve.points) for label, curve in CURVES.items()},
        "sets": results,
    }
    stored.write("draft_replay", document)


if __name__ == "__main__":
    main()
