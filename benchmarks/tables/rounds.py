"""What rounds bring on the support desk: docs/rounds.md and, in short, README.md."""

from __future__ import annotations

from collections.abc import Sequence

from cells import lines, over_seeds
from stored import Figures

ARMS = {
    "rounds": "as above",
    "sigmoid": "`sigmoid`: DPO's loss alone, no likelihood in it",
    "chosen": "`chosen`: plain SFT on the chosen answers",
    "unverified": "`unverified`: the Aligner trained on whatever it wrote",
}
COLUMNS = {
    "aligned": "with the Aligner",
    "changed": "changed by it",
    "wrong_left": "wrong and left",
    "garbled": "garbled",
}
SHORT = {
    "alone": "upstream alone right",
    "aligned": "with the Aligner",
    "wrong_left": "wrong and left",
    "garbled": "garbled",
}


def seeds(found: Figures) -> list[str]:
    rows = []
    for number, after in enumerate(_by_round(found, "rounds")):
        promoted = f"{_promoted(after)} of {len(after)}" if number else ""
        shares = [_over_seeds(after, name) for name in ("alone", *COLUMNS)]
        rows.append([str(number) if number else "start", *shares, promoted])
    return lines(["after round", "upstream alone right", *COLUMNS.values(), "promoted"], rows)


def short(found: Figures) -> list[str]:
    rows = [
        [str(number) if number else "start", *(_over_seeds(after, name) for name in SHORT)]
        for number, after in enumerate(_by_round(found, "rounds"))
    ]
    return lines(["after round", *SHORT.values()], rows)


def arms(found: Figures) -> list[str]:
    rows, runs = [], 0
    for name, told in ARMS.items():
        _, *rounds = _by_round(found, name)
        runs = sum(map(len, rounds))
        alone = ", ".join(_over_seeds(after, "alone") for after in rounds)
        shares = [_over_seeds(rounds[-1], column) for column in COLUMNS]
        rows.append([told, alone, *shares, str(sum(map(_promoted, rounds)))])
    return lines(["arm", "upstream alone right: after 1, 2, 3", *COLUMNS.values(), f"promoted of {runs}"], rows)


def _by_round(found: Figures, arm: str) -> list[tuple[Figures, ...]]:
    """The rows of all seeds after each round, the start first."""
    return list(zip(*(arms[arm]["rows"] for arms in found["runs"].values() if arm in arms), strict=True))


def _over_seeds(after: Sequence[Figures], name: str) -> str:
    return over_seeds([one[name] for one in after])


def _promoted(after: Sequence[Figures]) -> int:
    return sum(one["status"] == "promoted" for one in after)
