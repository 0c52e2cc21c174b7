"""What redaction finds in sentences that were written for it, what it takes from generated desk texts, and its speed.

    python benchmarks/redaction.py [--corrections 400]

Precision and recall by kind, with Wilson intervals, over tests/support/personal_data.txt: a span counts only with the right
kind, start and end. Its part "seen" was looked at while the rules were written, "unseen" was written before them; both
are by the author of the rules, so they say what was meant and not how live traffic fares. `restored`: texts of the support desk
of `bootstrap.demo` hold no personal data of these kinds, so everything that is replaced there is a mistake.

Speed is CPU time of one thread: support texts of about 150 characters asked and 600 answered, of three sorts; and texts made
to be hard, of 10,000 and 100,000 characters, where a ratio near 10 is linear.
Prints tables and writes benchmarks/results/redaction.json.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stored import Figures, commit, write

from aligner_chain import Correction, Exchange, __version__
from aligner_chain.exchange import edits_between
from bootstrap.demo import world
from bootstrap.evaluation import wilson
from bootstrap.redact import Redactor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from personal_data import HARD, sentences

DESK_TEXTS = 10_000
PROSE = (
    "Thank you for your message about the kettle that you bought from us last month.",
    "I am sorry that the parcel arrived with a dent in one of its corners.",
    "Your order 4500123456 was shipped on 2024-05-03 and should have arrived by now.",
    "You can return it within 30 days, provided that all parts are still in the box.",
    "Please print the label that we attached and bring the parcel to any post office.",
    "The refund of 49.90 EUR goes back to the account that you paid from.",
    "It usually takes between 3 and 5 working days until you see it there.",
    "If the blender still makes that noise, unplug it and wait for ten minutes.",
    "We have checked the warranty: it covers the motor but not the glass jar.",
    "Should you prefer a replacement instead, just tell us and we will send one at once.",
    "Opening hours of the shop are 9:00 to 18:30, on Saturdays until 14:00.",
    "Let me know whether this helps, or whether there is anything else that I can do.",
)
PERSONAL = (
    "You can write to anna.lindqvist@example.org about it.",
    "Call me on +44 20 7946 0958 after six, please.",
    "Please refund it to DE89 3704 0044 0532 0130 00.",
)


# --- precision and recall ----------------------------------------------------------------------------------------


def found_by_kind(part: str, redact: Redactor) -> dict[str, Figures]:
    counts: dict[str, Counter[str]] = {"all": Counter()}
    for sentence in sentences():
        if sentence.part == part:
            found = {(span.kind, span.start, span.end) for span in redact.find(sentence.text)}
            for outcome, marks in _outcomes(found, set(sentence.marks)).items():
                for kind, _, _ in marks:
                    counts.setdefault(kind, Counter())[outcome] += 1
                    counts["all"][outcome] += 1
    return {kind: _rates(count) for kind, count in counts.items()}


def _outcomes(found: set[Any], meant: set[Any]) -> dict[str, set[Any]]:
    return {"right": found & meant, "wrong": found - meant, "missed": meant - found}


def _rates(count: Counter[str]) -> Figures:
    right, found, meant = count["right"], count["right"] + count["wrong"], count["right"] + count["missed"]
    return {
        **{name: count[name] for name in ("right", "wrong", "missed")},
        "precision": list(wilson(right, found)) if found else None,
        "recall": list(wilson(right, meant)) if meant else None,
    }


def desk_texts(redact: Redactor) -> Figures:
    """How many generated questions, answers and passages of the support desk are touched."""
    rng, touched = random.Random(7), 0
    for _ in range(DESK_TEXTS):
        ticket = world.draw_unseen_ticket(rng) if rng.random() < 0.2 else world.draw_ticket(rng)
        exchange = ticket.exchange(world.right_answer(rng, ticket))
        texts = [exchange.question, exchange.answer, *exchange.context]
        touched += any(redact.find(text) for text in texts)
    return {"exchanges": DESK_TEXTS, "touched": touched, "interval": list(wilson(touched, DESK_TEXTS))}


# --- speed -------------------------------------------------------------------------------------------------------


def typical(rng: random.Random, personal: bool, corrected: bool) -> Correction:
    """A correction of a usual support text; a corrected one differs in one sentence of the answer."""
    answer = rng.sample(PROSE, 8)
    if personal:
        answer.insert(rng.randrange(8), rng.choice(PERSONAL))
    text = [*answer[:-1], "That is all."] if corrected else answer
    before, after = " ".join(answer), " ".join(text)
    return Correction(
        exchange=Exchange.of(" ".join(rng.sample(PROSE, 2)), before),
        text=after,
        outcome="corrected" if corrected else "approved",
        edits=edits_between(before, after),
    )


def cpu_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """The least CPU time of some runs: whatever else runs on the machine only ever adds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def speeds(redact: Redactor, corrections: int) -> dict[str, float]:
    rates = {}
    for name, personal, corrected in (
        ("nothing personal, corrected", False, True),
        ("personal data, approved", True, False),
        ("personal data, corrected", True, True),
    ):
        rng = random.Random(3)
        batch = [typical(rng, personal, corrected) for _ in range(corrections)]
        rates[name] = corrections / cpu_seconds(lambda batch=batch: [redact(one) for one in batch])  # type: ignore[misc]
    pairs = [(clean.exchange.answer, clean.text) for clean in map(redact, batch)]
    compared = cpu_seconds(lambda: [edits_between(*pair) for pair in pairs])
    rates["of these, edits alone"] = corrections / compared
    return rates


def hard_texts(redact: Redactor) -> dict[str, Figures]:
    """CPU milliseconds of texts made to be hard, short and ten times as long."""
    return {name: _growth(redact, make) for name, make in HARD.items()}


def _growth(redact: Redactor, make: Callable[[int], str]) -> Figures:
    short, long = (_seconds(redact, make(size)) for size in (10_000, 100_000))
    return {"ms_10k": short * 1e3, "ms_100k": long * 1e3, "ratio": long / short}


def _seconds(redact: Redactor, text: str) -> float:
    correction = Correction(exchange=Exchange.of("What?", text), text=text, outcome="approved")
    return cpu_seconds(lambda: redact(correction), rounds=3)


# --- the report --------------------------------------------------------------------------------------------------


def rows(result: Figures) -> list[str]:
    lines = [f"{'part':<8}{'kind':<10}{'right':>6}{'wrong':>6}{'missed':>7}   95 % precision   95 % recall"]
    for part in ("seen", "unseen"):
        for kind, one in sorted(result[part].items()):
            ends = (f"[{low:.2f}, {high:.2f}]" for low, high in filter(None, (one["precision"], one["recall"])))
            counts = f"{one['right']:>6}{one['wrong']:>6}{one['missed']:>7}"
            lines.append(f"{part:<8}{kind:<10}{counts}   {'   '.join(ends)}")
    desk = result["desk"]
    lines.append(f"support desk: {desk['touched']} of {desk['exchanges']} generated exchanges were touched")
    lines += [f"{name:<30}{rate:>9,.0f} corrections/s" for name, rate in result["speed"].items()]
    lines += [
        f"{name:<30}{one['ms_10k']:>9.1f} ms (10k) {one['ms_100k']:>9.1f} ms (100k), ratio {one['ratio']:.1f}"
        for name, one in result["hard"].items()
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corrections", type=int, default=400, help="of each sort, in the measure of speed")
    arguments = parser.parse_args()
    redact = Redactor()
    result = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "aligner_chain": __version__,
        "commit": commit(),
        "rules": redact.name,
        **{part: found_by_kind(part, redact) for part in ("seen", "unseen")},
        "desk": desk_texts(redact),
        "speed": speeds(redact, arguments.corrections),
        "hard": hard_texts(redact),
    }
    write("redaction", result)
    print("\n".join(rows(result)))


if __name__ == "__main__":
    main()
