"""Many corrections as live traffic gives them, made cheaply; and a command that is run with an eye on its memory."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from aligner_chain.exchange import Correction, Edit, Exchange, Turn, Usage
from bootstrap.records import Feedback, Record
from bootstrap.store import CorrectionStore

_WORDS = tuple(
    first + second + third for first in "bdfgklmnprst" for second in ("a", "en", "il", "or", "u") for third in "dkmnrst"
)
_HELP = " I hope this helps!"
_CRITERIA = ("true", "kind", "brief", "safe")
_EVERY_MS = 30_000  # a million of them are a year

_MEASURED = """
import sys
from bootstrap.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Ran:
    """What a command printed, and the most memory that it held, in megabytes."""

    out: str
    err: str
    peak_mb: float


def corrections(number: int, *, seed: int = 0) -> Iterator[Correction]:
    """Answers of some 60 words with one word mended, among them unchanged ones, repetitions and slight variations."""
    rng = random.Random(seed)
    question, answer = "", ""
    for at in range(number):
        kind = rng.random()
        if kind > 0.05 or not at:  # the others ask and answer as the one before
            question = f"{_text(rng, 18)}?"
            answer = f"{_text(rng, 40)}. {_text(rng, 20)}."
        elif kind > 0.02:
            answer = answer.replace(" ", " so ", 1)
        yield _correction(at, question, answer, changed=rng.random() > 0.2)


def fill(path: Path, number: int) -> None:
    """A store with corrections of many months, every tenth of them with a thumb."""
    store = CorrectionStore(path)
    made = (Record(correction=one, at_ms=at * _EVERY_MS) for at, one in enumerate(corrections(number)))
    while batch := list(islice(made, 2000)):
        store.append(batch)
        store.add_feedback(
            Feedback(kind="thumb", value=record.correction.changed, correction_id=record.correction.id)
            for record in batch[::10]
        )
    store.close()


def run(*arguments: object) -> Ran:
    """Runs `aligner-bootstrap` in a process of its own."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _MEASURED, *map(str, arguments)], capture_output=True, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()  # not as text, which would make "\n" of "\r"
    assert done.returncode == 0, err
    found = re.search(r"VmHWM:\s+(\d+) kB", err)
    assert found is not None
    ran = Ran(out=out, err=err, peak_mb=int(found[1]) / 1024)
    sys.stdout.write(f"{arguments[0]}: {time.monotonic() - start:.0f} s, at most {ran.peak_mb:.0f} MB\n")
    return ran


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _correction(at: int, question: str, answer: str, *, changed: bool) -> Correction:
    start = answer.index(" ") + 1
    end = answer.index(" ", start)
    edit = Edit(start=start, end=end, before=answer[start:end], after="rightly")
    ending = Edit(start=len(answer), end=len(answer), before="", after=_HELP)
    text = answer[:start] + "rightly" + answer[end:] + _HELP
    return Correction(
        exchange=Exchange(
            turns=(Turn(role="user", text=question),), answer=answer, upstream=f"tiny@{1 + at // 50_000}"
        ),
        text=text if changed else answer,
        outcome="corrected" if changed else "approved",
        edits=(edit, ending) if changed else (),
        criteria=(_CRITERIA[at % len(_CRITERIA)],) if changed else (),
        usage=Usage(latency_s=len(answer) / 7919, prompt_tokens=len(answer) // 4, new_tokens=at % 97),
        aligner="tiny@1",
        template="aligner-chain/1",
        id=f"{at:012x}-0000-7000-8000-000000000000",
    )
