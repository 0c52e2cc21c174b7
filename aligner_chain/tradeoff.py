"""What `aligner-chain calibrate` measures: how much correcting a gate would save, for each share of bad answers it may miss.

Pure but for `score`, which asks the inspector, and `store`, which writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from aligner_chain import __version__
from aligner_chain.calibration import Calibration, auc, calibrate, needed, passing
from aligner_chain.checkpoint import FILE, AlignerMetadata, read_metadata, write_metadata
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.inspectors import Inspector

Scores = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tradeoff:
    """One criterion and one `alpha`. `threshold` is None where there are fewer bad answers than `needed`.

    `kept` is the share of the good answers above the threshold, which skip their correction. `auc` is that of the
    criterion with its 95 % interval `auc_low` to `auc_high`; None where all answers are of one kind.
    """

    criterion: str
    alpha: float
    delta: float
    n_bad: int
    n_good: int
    needed: int
    threshold: float | None
    kept: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None

    def calibration(self, aligner: str, upstream: str | None) -> Calibration | None:
        """What is stored of it, dated now; None where the gate stays shut. Both models are `name@version`."""
        if self.threshold is None:
            return None
        return Calibration(
            **{name: getattr(self, name) for name in ("criterion", "alpha", "delta", "n_bad", "n_good", "kept")},
            threshold=self.threshold,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            aligner=aligner,
            upstream=upstream,
            package_version=__version__,
        )


def score(
    inspector: Inspector, exchanges: Sequence[Exchange], *, batch: int, progress: Callable[[str], None]
) -> list[Mapping[str, float]]:
    """The inspector's scores, `batch` answers at a time; `progress` is told of each batch and, with "", of the end."""
    scores: list[Mapping[str, float]] = []
    for start in range(0, len(exchanges), batch):
        progress(f"{start} of {len(exchanges)} answers scored")
        scores += inspector.inspect(exchanges[start : start + batch])
    progress("")
    return scores


def measure(scores: Scores, ok: Sequence[bool], *, alphas: Sequence[float], delta: float) -> list[Tradeoff]:
    """One row for each criterion and alpha, both in the order given. An answer without a score of it does not count.

    Raises `ConfigurationError` where nothing was scored, and for shares that are not between 0 and 1.
    """
    criteria = dict.fromkeys(name for one in scores for name in one)
    if not criteria:
        raise ConfigurationError(
            f"None of {len(ok)} answers could be scored, so there is nothing to calibrate. An answer has a score where neither it "
            "nor its question is empty, and both fit the model's window."
        )
    return [row for name in criteria for row in _rows(name, scores, ok, alphas, delta)]


def _rows(name: str, scores: Scores, ok: Sequence[bool], alphas: Sequence[float], delta: float) -> Iterator[Tradeoff]:
    rows = [(one[name], fine) for one, fine in zip(scores, ok, strict=True) if name in one]
    good, bad = [score for score, fine in rows if fine], [score for score, fine in rows if not fine]
    value, low, high = auc(good, bad) if good and bad else (None, None, None)
    for alpha in alphas:
        threshold = calibrate(bad, alpha=alpha, delta=delta)
        yield Tradeoff(
            criterion=name,
            alpha=alpha,
            delta=delta,
            n_bad=len(bad),
            n_good=len(good),
            needed=needed(alpha, delta),
            threshold=threshold,
            kept=None if threshold is None else passing(good, threshold),
            auc=value,
            auc_low=low,
            auc_high=high,
        )


def describe(rows: Sequence[Tradeoff]) -> Iterator[str]:
    """The rows as lines for a person."""
    for name in dict.fromkeys(row.criterion for row in rows):
        mine = [row for row in rows if row.criterion == name]
        yield f"{name}: {mine[0].n_good} good and {mine[0].n_bad} bad answers, {_auc(mine[0])}"
        yield f"{'may be missed':>13}  {'needed':>8}  {'threshold':>9}  good answers that skip their correction"
        yield from map(_line, mine)
        if mine[0].auc_low is not None and mine[0].auc_low <= 0.5:
            yield f"{name} is not shown to tell good answers from bad ones: chance alone has an AUC of 0.5."
    yield f"With confidence {1 - rows[0].delta:.4g}, no more of the bad answers are missed than may be."


def _auc(row: Tradeoff) -> str:
    if row.auc is None:
        return "no AUC without some of both"
    return f"AUC {row.auc:.3f} ({row.auc_low:.3f} to {row.auc_high:.3f})"


def _line(row: Tradeoff) -> str:
    start = f"{f'{100 * row.alpha:.4g} %':>13}  {f'{row.needed} bad':>8}  "
    if row.threshold is None:
        return f"{start}the gate stays shut: {row.n_bad} bad answers, {row.needed} are needed"
    # Cut and not rounded: what is printed as 0.99999 must not be read as 1.
    return f"{start}{f'{row.threshold:.7f}'[:-2]:>9}  {'unknown: no good answers' if row.kept is None else f'{row.kept:.1%}'}"


def upstream_of(exchanges: Sequence[Exchange]) -> str | None:
    """The model that gave all the answers, or None where it is not known of each or they are of several."""
    named = {exchange.upstream for exchange in exchanges}
    return named.pop() if len(named) == 1 else None


def store(folder: str | Path, metadata: AlignerMetadata, rows: Sequence[Tradeoff], upstream: str | None) -> None:
    """Puts the calibrations of the rows that have a threshold into the folder's `aligner.json`, in one atomic step.

    Others of the same version stay, those of another are dropped.

    Args:
        folder: The Aligner's model folder.
        metadata: Of the Aligner that gave the scores.
        rows: At most one for each criterion.
        upstream: The `name@version` of the model that gave the answers.

    Raises:
        CheckpointError: The folder has no `aligner.json`, or a broken one.
        ConfigurationError: The folder says another version or template than the Aligner that was asked.
    """
    stored = read_metadata(folder)
    if (stored.identity, stored.template) != (metadata.identity, metadata.template):
        raise ConfigurationError(
            f"{Path(folder) / FILE} is of {stored.identity} with the template {stored.template}, but what was measured is "
            f"{metadata.identity} with {metadata.template}. Measure it as it is stored: without --template."
        )
    made = {row.criterion: row.calibration(stored.identity, upstream) for row in rows}
    kept = {name: one for name, one in stored.calibrations.items() if one.aligner == stored.identity}
    new = {name: one for name, one in made.items() if one is not None}
    write_metadata(folder, replace(stored, calibrations={**kept, **new}))
