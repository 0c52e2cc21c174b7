"""Three bootstrap rounds of the support desk on seeds that nothing was tuned on, and what they are without their parts.

    python benchmarks/rounds.py [--seeds 20 21 22 23 24] [--arms rounds sigmoid chosen unverified] [--work DIR]
    python benchmarks/rounds.py --show

For each seed a start pair is trained once; each arm goes on from it with rounds of its own: 250 live questions (with the
demo's 700 nothing is left to learn after the first round), DPO, the retraining of the Aligner, all gates. Arms: `rounds` as the demo runs them; `sigmoid` without the likelihood in the loss;
`chosen` with plain SFT on the chosen answers instead of DPO; `unverified` with whatever the Aligner wrote in its own
training set, neither verified nor annotated. Measured on 640 held-out questions after each round, with the pair served
then: an arm whose candidates its gates refuse keeps what it had.

Writes benchmarks/results/rounds.json after each arm and leaves out what stands there already, so that it can be ended and
started again: an arm takes some ten minutes on two cores, twenty of them a night. The lines are those of `LINES`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from stored import RESULTS, Figures, commit, read, write

from aligner_chain import __version__
from aligner_chain.exchange import Correction
from bootstrap.demo.scale import FULL, QUICK
from bootstrap.demo.show import Demo, machine_figures
from bootstrap.demo.start import Start, Workshop
from bootstrap.rounds import RoundConfig
from bootstrap.sft import cpu_threads

sys.path.append(str(Path(__file__).parent / "tables"))
from cells import over_seeds

ROUNDS, LIVE = 3, 250


def everything(corrections: Sequence[Correction]) -> list[bool]:
    """A verifier that confirms whatever it is shown."""
    return [True] * len(corrections)


ARMS: dict[str, Callable[[RoundConfig], RoundConfig]] = {
    "rounds": lambda config: config,
    "sigmoid": lambda config: replace(config, dpo=replace(config.dpo, loss_weights=(1.0, 0.0))),
    "chosen": lambda config: replace(config, dpo=replace(config.dpo, chosen_only=True)),
    "unverified": lambda config: replace(config, verifier=everything, annotator=None),
}

LINES: dict[str, Callable[[Sequence[Figures]], bool]] = {
    "upstream alone rises in round 1": lambda runs: mean(runs, 1, "alone") > mean(runs, 0, "alone"),
    "upstream alone rises in round 2": lambda runs: mean(runs, 2, "alone") > mean(runs, 1, "alone"),
    "round 3 is not worse by more than 2 points": lambda runs: mean(runs, 3, "alone") >= mean(runs, 2, "alone") - 0.02,
    "after three rounds at least 85 %": lambda runs: mean(runs, 3, "alone") >= 0.85,
    "garbled at most 1 %": lambda runs: mean(runs, 3, "garbled") <= 0.01,
    "no criterion below 0 by more than 2 points": lambda runs: all(
        high >= -0.02 for run in runs for _, high in run["rows"][3]["criteria"].values()
    ),
    "the Aligner changes less": lambda runs: mean(runs, 3, "changed") < mean(runs, 0, "changed"),
    "what it wrongly leaves rises by at most 1 point": lambda runs: (
        mean(runs, 3, "wrong_left") <= mean(runs, 0, "wrong_left") + 0.01
    ),
}


class Arm(Demo):
    """The demo's rounds on a start pair that is there already, with other settings."""

    def __init__(self, start: Start, change: Callable[[RoundConfig], RoundConfig], **options: Any) -> None:
        super().__init__(**options)
        self._start, self._change = start, change

    def make_start(self) -> Start:
        return self._start

    def config(self) -> RoundConfig:
        return self._change(super().config())

    def compare(self) -> Figures:
        return {}  # the arm `chosen` does that in full


def row(told: Mapping[str, Any]) -> Figures:
    """What is kept of one round of a demo. Shares are between 0 and 1."""
    return {
        "status": told.get("status", "start"),
        "pairs": told["pairs"],
        "alone": told["upstream_alone"]["fully_right"],
        "aligned": told["with_aligner"]["fully_right"],
        "changed": told["changed_share"],
        "wrong_left": told["wrong_left_share"],
        "garbled": told["garbled_share"],
        "right_kept": told["right_kept_share"],
        "criteria": told["criteria_paired_interval"],
        "refused_by": [gate for gate in told["gates"] if gate["decision"] != "promote"],
    }


def run(seed: int, arms: Sequence[str], work: Path, *, quick: bool) -> None:
    """Runs the arms of one seed that are not in the results."""
    missing = [arm for arm in arms if arm not in stored()["runs"].get(str(seed), {})]
    if not missing:
        return
    with cpu_threads(1) as threads:
        scale = replace(QUICK, threads=threads) if quick else replace(FULL, threads=threads, live=LIVE)
        folder = work / f"seed-{seed}"
        start = Workshop(folder=folder / "start", seed=seed, scale=scale, say=print).make()
        for arm in missing:
            started = time.monotonic()
            options = {"out": folder / arm, "seed": seed, "scale": scale, "say": print, "progress": False}
            figures = Arm(start, ARMS[arm], **options).run(ROUNDS)
            rows = [row(told) for told in figures["rounds"]]
            if not quick:
                keep(seed, arm, {"commit": commit(), "rows": rows, **machine_figures(started)})


def stored() -> Figures:
    """The results so far."""
    return read("rounds") if (RESULTS / "rounds.json").exists() else {"runs": {}}


def keep(seed: int, arm: str, figures: Figures) -> None:
    """Adds one arm of one seed to the results; another process may be adding its own."""
    told = stored()
    told["aligner_chain"] = __version__
    told["runs"].setdefault(str(seed), {})[arm] = figures
    runs = [arms["rounds"] for arms in told["runs"].values() if "rounds" in arms]
    told["lines"] = {line: holds(runs) for line, holds in LINES.items()} if runs else {}
    write("rounds", told)


def mean(runs: Sequence[Figures], number: int, name: str) -> float:
    """The mean over seeds of one figure after one round."""
    return fmean(one["rows"][number][name] for one in runs)


def show() -> None:
    """Prints a table over the seeds, and which lines hold."""
    told, names = stored(), ("alone", "aligned", "changed", "wrong_left", "garbled", "right_kept")
    print(f"{'arm':<12}{'seeds':>6}{'round':>6}  " + "".join(f"{name:>15}" for name in names) + "   promoted")
    for arm in ARMS:
        runs = [arms[arm] for arms in told["runs"].values() if arm in arms]
        for number in range(ROUNDS + 1) if runs else ():
            rows = [one["rows"][number] for one in runs]
            shown = "".join(f"{over_seeds([one[name] for one in rows]):>15}" for name in names)
            promoted = sum(one["status"] == "promoted" for one in rows)
            print(f"{arm:<12}{len(runs):>6}{number:>6}  {shown}   {promoted if number else '-'}")
    for line, holds in told.get("lines", {}).items():
        print(f"{'holds' if holds else 'DOES NOT HOLD':<14} {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23, 24])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--work", type=Path, help="where models and stores go; by default they are removed at the end")
    parser.add_argument("--quick", action="store_true", help="the quick demo, to see that this runs; stores nothing")
    parser.add_argument("--show", action="store_true", help="print what is stored")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in () if given.show else given.seeds:
            run(seed, given.arms, given.work or Path(folder), quick=given.quick)
    show()


if __name__ == "__main__":
    main()
