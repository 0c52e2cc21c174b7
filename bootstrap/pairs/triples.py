"""Question-answer-correction rows for the Aligner, from records that somebody else than the Aligner vouches for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from aligner_chain.exchange import Correction
from bootstrap.pairs.filters import verdict
from bootstrap.pairs.values import Source, Triple, TripleSet
from bootstrap.records import Record, is_unicode


def triples(corrections: Iterable[Correction], *, source: Source) -> TripleSet:
    """The question-answer-correction rows of corrections: approved answers to keep, corrected ones to fix.

    An Aligner is never trained on its own unverified output: give only corrections that somebody vouches for, and say
    who. Left out are those that are neither `approved` nor `corrected` (by outcome), `empty`, `not unicode` or `duplicate`.
    """
    rows: dict[tuple[object, ...], Triple] = {}
    dropped: Counter[str] = Counter()
    for correction in corrections:
        row = _triple(correction, correction.text, source)
        key = (row.turns, row.context, row.answer, row.correction)
        wrong = correction.outcome if correction.outcome not in ("approved", "corrected") else _unfit(row)
        if obstacle := wrong or ("duplicate" if key in rows else None):
            dropped[obstacle] += 1
        else:
            rows[key] = row
    return TripleSet(triples=tuple(rows.values()), dropped=dict(dropped))


class VouchedTriples:
    """Makes triples of the records that a person, or an imported file, vouches for.

    A person's edit is the correction, and an edit equal to the answer says that the answer is right. An accepted review or
    a thumb up vouches for the text that was served; a rejected review or a thumb down without an edit leaves no known best
    answer, and so no row. Records that nobody spoke about make none: they are the Aligner's own unverified output.
    """

    def prepare(self, records: Iterable[Record]) -> None:
        """Looks at nothing: each row depends on its record alone."""

    def make(self, record: Record) -> Triple | str:
        found = verdict(record)
        if found.obstacle:
            return found.obstacle
        if found.source is None:
            return "nobody vouches for it"
        row = _triple(record.correction, found.text, found.source)
        return _unfit(row) or row


def _triple(correction: Correction, text: str, source: Source) -> Triple:
    # What the Aligner named is what its own text mends.
    criteria = correction.criteria if text == correction.text else ()
    return Triple.of(correction.exchange, text, criteria=criteria, source=source)


def _unfit(row: Triple) -> str | None:
    text = row.answer if row.correction is None else row.correction
    if not (row.turns and row.answer.strip() and text.strip()):
        return "empty"
    prompt = (turn.text for turn in row.turns)
    return None if all(map(is_unicode, (*prompt, *row.context, row.answer, text))) else "not unicode"
