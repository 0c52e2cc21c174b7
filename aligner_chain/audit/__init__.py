"""The same traffic through any corrector: harm, fix, how much is changed and time, beside what understands nothing.

    from aligner_chain.audit import Row, audit, corrector

    rows = [Row(exchange=Exchange.of(question, answer), right=right_answer)]
    found = audit({"ours": corrector(aligner), "critique": corrector(critique_chain)}, rows)
    found.as_json()

`aligner_chain.audit.page.page(found)` shows it; `aligner-chain check --audit` does it all from a shell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from aligner_chain.audit.correctors import NULLS, Corrector, corrector
from aligner_chain.audit.figures import Figures, figures
from aligner_chain.audit.results import Result
from aligner_chain.audit.rows import Row
from aligner_chain.checks import CHECKS, Checks
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Exchange, Finding, edits_between

__all__ = ["NULLS", "Audit", "Corrector", "Figures", "Row", "audit", "corrector"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The figures of every corrector over the same rows, those that understand nothing last.

    `rows_ok` need nothing, `rows_wrong` need something; of the others it is not known. `results` holds for each corrector
    what it made of every row, in order: the texts of the traffic are there, and not in `as_json`.
    """

    total: int
    rows_ok: int
    rows_wrong: int
    correctors: Mapping[str, Figures]
    results: Mapping[str, Sequence[Result]] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """The figures as one object; shares are between 0 and 1, times in seconds."""
        counts = {name: getattr(self, name) for name in ("total", "rows_ok", "rows_wrong")}
        return {**counts, "correctors": {name: asdict(one) for name, one in self.correctors.items()}}


def audit(
    correctors: Mapping[str, Corrector], rows: Iterable[Row], *, progress: Callable[[str], None] = lambda text: None
) -> Audit:
    """Has each corrector correct each row, one answer at a time, and measures what comes of it.

    Args:
        correctors: By their names. `copy` and `refuse` stand beside them without being asked for.
        rows: The traffic.
        progress: Told what runs and, with "", of the end.

    Returns:
        The figures. An answer on which a corrector raised is counted as a failure, and the next one follows.

    Raises:
        ConfigurationError: There is no row, or a corrector has the name of a null corrector.
    """
    told = tuple(rows)
    if not told:
        raise ConfigurationError("There is no answer to audit. Give at least one row.")
    if taken := NULLS.keys() & correctors.keys():
        raise ConfigurationError(
            f"{min(taken)!r} is the name of a null corrector, which is in every audit; give another."
        )
    results = {name: _results(name, one, told, progress) for name, one in {**correctors, **NULLS}.items()}
    progress("")
    kinds = Counter(row.needs_nothing for row in told)
    measured = {name: figures(one) for name, one in results.items()}
    return Audit(total=len(told), rows_ok=kinds[True], rows_wrong=kinds[False], correctors=measured, results=results)


def _results(
    name: str, corrector: Corrector, rows: Sequence[Row], progress: Callable[[str], None]
) -> tuple[Result, ...]:
    found = []
    for number, row in enumerate(rows):
        progress(f"{name}: {number} of {len(rows)} answers")
        found.append(_result(corrector, row))
    return tuple(found)


def _result(corrector: Corrector, row: Row) -> Result:
    begun = perf_counter()
    try:
        served = _only(corrector([row.exchange]))
    except Exception as error:  # noqa: BLE001  (anybody's code: what it raises belongs to this answer)
        return Result(row=row, text=None, seconds=perf_counter() - begun, error=error)
    seconds = perf_counter() - begun
    text, forwards = (served, 0) if isinstance(served, str) else (served.text, served.usage.forwards)
    found = _findings(row.exchange, text)
    return Result(row=row, text=text, seconds=seconds, forwards=forwards, findings=found)


def _only(served: Sequence[str | Correction]) -> str | Correction:
    if isinstance(served, str) or len(served) != 1 or not isinstance(served[0], str | Correction):
        raise TypeError("a corrector returns one text for each exchange")
    return served[0]


def _findings(exchange: Exchange, text: str) -> tuple[Finding, ...]:
    """All that the checks see in the change, whatever is done about it where answers are served."""
    if text == exchange.answer:
        return ()
    edits = edits_between(exchange.answer, text)
    everything: dict[str, Any] = dict.fromkeys(CHECKS, "warn")
    written = Correction(exchange=exchange, text=text, outcome="corrected", edits=edits)
    return Checks(**everything)(written).findings
