"""Training data from corrections: preference pairs for the upstream, question-answer-correction triples for the Aligner.

What is left out is counted by its reason, and a manifest pins down what is left.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from aligner_chain.exchange import Correction, Exchange, Turn
from bootstrap.errors import NotEnoughPairsError, TrainingDataError

Source = Literal["gold", "verified", "annotated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A preference of the upstream's training: to `turns`, `chosen` (the correction) is better than `rejected`.

    `correction_id` names the record that the pair was made from, `upstream` the model that gave the rejected answer.
    """

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    correction_id: str
    upstream: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSet:
    """Pairs, and how many corrections made none, by reason."""

    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Triple:
    """A question, an answer and its correction, to train an Aligner on. `correction` None: the answer is right, KEEP.

    `criteria` are those that the answer broke, `asked` those that it is judged by (): whatever the Aligner knows. `source` says who vouches for the row: a gold set, an independent
    verifier or an annotator.
    """

    turns: tuple[Turn, ...]
    answer: str
    correction: str | None
    context: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    source: Source = "gold"

    @property
    def exchange(self) -> Exchange:
        """The exchange as an Aligner is shown it."""
        return Exchange(turns=self.turns, answer=self.answer, context=self.context)


@dataclass(frozen=True, kw_only=True, slots=True)
class TripleSet:
    """Triples, and how many corrections made none, by reason."""

    triples: tuple[Triple, ...]
    dropped: Mapping[str, int]


class Manifest(TypedDict):
    """What a training set was: how many rows, the SHA-256 of them in their order, what was left out of it and why."""

    rows: int
    sha256: str
    dropped: dict[str, int]


def build_pairs(corrections: Iterable[Correction], *, minimum: int = 0) -> PairSet:
    """The preference pairs of corrections: prompt as asked, chosen is the correction, rejected the original.

    Left out are corrections that `failed`, left the answer `unchanged`, are `empty` on a side, are `not unicode` (lone
    surrogates, which no tokenizer takes), or give a pair again (`duplicate`). So are those `with passages`: the upstream
    read them in a prompt that is not recorded, and trained on the question alone it would learn to make facts up.

    Args:
        corrections: of the training split, normally `store.corrections("train")`.
        minimum: the least number of pairs.

    Raises:
        NotEnoughPairsError: there are fewer than `minimum`.
    """
    pairs: dict[tuple[object, ...], Pair] = {}
    dropped: Counter[str] = Counter()
    for correction in corrections:
        pair = _pair(correction)
        key = (pair.turns, pair.rejected, pair.chosen)
        if obstacle := _unfit_pair(correction) or ("duplicate" if key in pairs else None):
            dropped[obstacle] += 1
        else:
            pairs[key] = pair
    if len(pairs) < minimum:
        raise NotEnoughPairsError(len(pairs), minimum, dropped)
    return PairSet(pairs=tuple(pairs.values()), dropped=dict(dropped))


def triples(corrections: Iterable[Correction], *, source: Source) -> TripleSet:
    """The question-answer-correction rows of corrections: approved answers to keep, corrected ones to fix.

    An Aligner is never trained on its own unverified output: give only corrections that somebody vouches for, and say
    who. Left out are those that are neither `approved` nor `corrected` (by outcome), `empty`, `not unicode` or `duplicate`.
    """
    rows: dict[tuple[object, ...], Triple] = {}
    dropped: Counter[str] = Counter()
    for correction in corrections:
        row = _triple(correction, source)
        key = (row.turns, row.context, row.answer, row.correction)
        if obstacle := _unfit_triple(correction) or ("duplicate" if key in rows else None):
            dropped[obstacle] += 1
        else:
            rows[key] = row
    return TripleSet(triples=tuple(rows.values()), dropped=dict(dropped))


def manifest(rows: Iterable[Pair | Triple], dropped: Mapping[str, int] | None = None) -> Manifest:
    """Pins down a training set: the same rows in the same order, and only those, give the same `sha256`."""
    digest, count = hashlib.sha256(), 0
    for row in rows:
        canonical = json.dumps(asdict(row), sort_keys=True, separators=(",", ":"))
        digest.update(canonical.encode() + b"\n")
        count += 1
    return Manifest(rows=count, sha256=digest.hexdigest(), dropped=dict(dropped or {}))


def write_triples(path: str | os.PathLike[str], rows: Iterable[Triple]) -> None:
    """Writes triples as JSON lines that `read_triples` reads back equal; a row to keep has its answer as correction."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            fields = {**asdict(row), "correction": row.answer if row.correction is None else row.correction}
            file.write(json.dumps(fields) + "\n")


def read_triples(path: str | os.PathLike[str]) -> list[Triple]:
    """Reads the training data of an Aligner from JSON lines.

    Each line is an object of `question` (or `turns`: a list of `{"role", "text"}`), `answer` and `correction`; a
    correction equal to its answer means that the answer is right. Optional are `context` and `criteria` (lists of
    strings) and `source`; other keys are left alone, and so are blank lines.

    Raises:
        TrainingDataError: the file cannot be read, has no rows, or a line is not as above; the message names the line.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            rows = [_read_line(line, f"{path}, line {number}") for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{path} cannot be read as UTF-8 text: {error}. Check the path given.") from error
    if not rows:
        raise TrainingDataError(f"{path} holds no rows. {_EXPECTED}")
    return rows


_EXPECTED = (
    "Each line must be a JSON object like\n"
    '  {"question": "...", "answer": "...", "correction": "...", "context": ["..."], "criteria": ["..."]}\n'
    "where context and criteria may be left out, a correction equal to its answer means that the answer is right, and "
    'instead of the question there may be  "turns": [{"role": "user", "text": "..."}, ...]'
)


def _read_line(line: str, where: str) -> Triple:
    try:
        return _parse(json.loads(line))
    except json.JSONDecodeError as error:
        raise TrainingDataError(f"{where}: it is no JSON ({error.msg}, column {error.colno}). {_EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        raise TrainingDataError(f"{where}: {error}. {_EXPECTED}") from error


def _parse(fields: object) -> Triple:
    if not isinstance(fields, dict):
        raise ValueError(f"it is no object but {type(fields).__name__}")
    answer, correction = _filled(fields, "answer"), _filled(fields, "correction")
    source = fields.get("source", "gold")
    if source not in get_args(Source):
        raise ValueError(f'"source" must be one of {", ".join(get_args(Source))}, not {source!r}')
    return Triple(
        turns=_turns(fields),
        answer=answer,
        correction=None if correction == answer else correction,
        context=_texts(fields, "context"),
        criteria=_texts(fields, "criteria"),
        source=source,
    )


def _turns(fields: dict[str, Any]) -> tuple[Turn, ...]:
    if ("question" in fields) == ("turns" in fields):
        raise ValueError('it must have either "question" or "turns"')
    if "question" in fields:
        return (Turn(role="user", text=_filled(fields, "question")),)
    turns = fields["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError('"turns" must be a list of objects with "role" and "text"')
    return tuple(Turn(role=_text(turn, "role"), text=_text(turn, "text")) for turn in turns)


def _filled(fields: dict[str, Any], name: str) -> str:
    text = _text(fields, name)
    if not text.strip():
        raise ValueError(f'"{name}" is empty')
    return text


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise ValueError(f'"{name}" is missing')
    return _checked(fields[name], name)


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    texts = fields.get(name, [])
    if not isinstance(texts, list):
        raise ValueError(f'"{name}" must be a list of strings')
    return tuple(_checked(text, name) for text in texts)


def _checked(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f'"{name}" must be text, not {text!r:.60}')
    if not _is_unicode(text):
        raise ValueError(f'"{name}" holds a lone surrogate, which is no Unicode text')
    return text


def _pair(correction: Correction) -> Pair:
    exchange = correction.exchange
    return Pair(
        turns=exchange.turns,
        chosen=correction.text,
        rejected=exchange.answer,
        correction_id=correction.id,
        upstream=exchange.upstream,
    )


def _triple(correction: Correction, source: Source) -> Triple:
    exchange = correction.exchange
    return Triple(
        turns=exchange.turns,
        answer=exchange.answer,
        correction=correction.text if correction.changed else None,
        context=exchange.context,
        criteria=correction.criteria,
        source=source,
    )


def _unfit_pair(correction: Correction) -> str | None:
    if correction.outcome == "failed":
        return "failed"
    if not correction.changed:
        return "unchanged"
    if correction.exchange.context:
        return "with passages"
    return _unfit_text(correction)


def _unfit_triple(correction: Correction) -> str | None:
    if correction.outcome not in ("approved", "corrected"):
        return correction.outcome
    return _unfit_text(correction)


def _unfit_text(correction: Correction) -> str | None:
    exchange = correction.exchange
    if not (exchange.turns and exchange.answer.strip() and correction.text.strip()):
        return "empty"
    prompt = (turn.text for turn in exchange.turns)
    fits = all(map(_is_unicode, (*prompt, *exchange.context, exchange.answer, correction.text)))
    return None if fits else "not unicode"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
