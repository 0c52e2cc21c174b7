"""Recorded pairs of answer and correction as workloads: what an Aligner really wrote, forced upon the model again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from aligner_chain.bench.workloads import ANSWER, FIRST, OUTPUT, QUESTION, VOCABULARY, Case, Row, Workload
from aligner_chain.errors import ConfigurationError

REPLAYS: Mapping[str, str] = {
    "debugbench": "debugbench",
    "aligner2b": "aligner2b",
    "paradetox": "paradetox",
    "coach": "coach",
    "gsm8k": "gsm8k",
}
"""Workloads and how the folder with their pairs begins."""
ROWS = 20
LONGEST = 300
"""Most tokens of an answer that is replayed."""
LONGEST_ROW = 2048
_READ = 4000
"""Rows of the train part that the tokenizer learns from."""


def find(name: str, data: Path | None) -> Path | None:
    """The folder in `data` that holds the pairs of a workload, or None."""
    if data is None:
        return None
    if not data.is_dir():
        raise ConfigurationError(f"{data} is not a folder. --data takes one that holds a folder for each set of pairs.")
    found = sorted(folder for folder in data.iterdir() if folder.name.startswith(REPLAYS[name]))
    return found[0] if found else None


def replay(name: str, folder: Path, seed: int) -> Workload:
    """A sample of the dev part and one row more to warm up; the tokenizer is trained on the train part."""
    from aligner_chain.bench.models import fast

    tokenizer = _trained(_read(folder / "train.jsonl"))
    rows = list(_read(folder / "dev.jsonl"))
    Random(f"{seed}:{name}").shuffle(rows)
    fitting = (case for case in (_case(row, tokenizer) for row in rows) if case is not None)
    chosen = tuple(islice(fitting, ROWS + 1))
    if len(chosen) < 2:
        raise ConfigurationError(f"{folder} has fewer than 2 pairs with an answer of at most {LONGEST} tokens.")
    return Workload(
        name=name,
        cases=chosen[1:],
        warm_up=chosen[:1],
        tokenizer=fast(tokenizer, _SPECIAL),
        note=f"A sample of {len(chosen) - 1} recorded pairs of {folder.name}.",
    )


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON lines: {error}") from error


def _trained(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A byte-level BPE whose special tokens take the ids below `FIRST`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (row.get(key, "") for row, _ in zip(rows, range(_READ), strict=False) for key in _TEXTS)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
    return tokenizer


_TEXTS = ("question", "answer", "correction")
_SPECIAL = [f"<|{token}|>" for token in range(FIRST)]
"""The frame's tokens, whose ids no text gets."""


def _case(row: Mapping[str, Any], tokenizer: Any) -> Case | None:
    """The row as a case, or None where it is empty or too long."""
    question, answer, correction = (tokenizer.encode(row.get(key, "")) for key in _TEXTS)
    prompt: Sequence[int] = (QUESTION, *question.ids, ANSWER, *answer.ids, OUTPUT)
    fits = 0 < len(answer.ids) <= LONGEST and len(prompt) + len(correction.ids) <= LONGEST_ROW
    if not fits or not correction.ids:
        return None
    spans = tuple(answer.offsets)
    return (Row(prompt=tuple(prompt), answer=tuple(answer.ids), correction=tuple(correction.ids), spans=spans),)
