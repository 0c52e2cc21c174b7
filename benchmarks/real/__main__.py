"""Aligners from nothing on real data: rude sentences and buggy programs, with what copying and deleting do beside them.

    python benchmarks/real paradetox --data folder-with-train-and-dev --work real-work
    python benchmarks/real debugbench --data folder-with-train-and-dev --work real-work
    python benchmarks/real loop --data folder-with-train-and-dev --work loop-work
    python benchmarks/real show

All but the last train on a folder's train.jsonl, keep the Aligners in --work and train none twice, measure on dev.jsonl and
write benchmarks/results/real_*.json. `--tune` measures on the part of train.jsonl that none is trained on, prints what it
finds and reads no dev.jsonl: settings are chosen so. `--only NAME` is one Aligner of several; of the loop, the one that
it begins with. `show` prints the tables of
docs/real_data.md from the stored files alone, that of GSM8K from harm_gsm8k.json, which `benchmarks/harm gsm8k` writes.
Set OMP_NUM_THREADS=1: models as small as these get no faster with more.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aligner_chain import Aligner, __version__
from bootstrap.demo.show import machine_figures
from bootstrap.pairs import Triple

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / folder) for folder in ("harm", "tables", "")]
import loop  # noqa: E402
import made  # noqa: E402
import politeness  # noqa: E402
import programs  # noqa: E402
import real  # noqa: E402
import rude  # noqa: E402
import stored  # noqa: E402
import tables  # noqa: E402
from report import Figures  # noqa: E402

QUESTION = "Politely?"
"""The question of every sentence of ParaDetox, which has none of its own; short, since each row pays for it."""


@dataclass(frozen=True)
class Run:
    """One Aligner: its size and training, and the one that it starts from; None are random weights.

    `made` is the number of rows that are made of what people wrote (see `made`); 0 are their corrections as they are.
    `share` is that of the training sentences which anything is known of.
    """

    size: real.Size
    start: str | None = None
    made: int = 0
    share: float = 1.0


def _reader(epochs: float, rate: float, *, warm_up: float = 0.4, hidden: int = 96) -> real.Size:
    return real.Size(words=2500, hidden=hidden, window=256, warm_up=warm_up, epochs=epochs, batch=32, rate=rate)


def _with_made(hidden: int, share: float = 1.0) -> Run:
    return Run(_reader(epochs=1, rate=2e-3, warm_up=0.13, hidden=hidden), made=96_000, share=share)


RUDE = {
    "people's rows, 2 epochs": Run(_reader(epochs=2, rate=3e-3)),
    "people's rows, 5 epochs": Run(_reader(epochs=3, rate=2e-3), start="people's rows, 2 epochs"),
    "people's rows, 9 epochs": Run(_reader(epochs=4, rate=2e-3), start="people's rows, 5 epochs"),
    "made rows, 64 wide": _with_made(64),
    "made rows, 96 wide": _with_made(96),
    "made rows, 128 wide": _with_made(128),
    "made rows, 96 wide, of a quarter of the sentences": _with_made(96, share=0.25),
    "made rows, 96 wide, three times as many": Run(
        _reader(epochs=1, rate=2e-3), start="made rows, 96 wide", made=192_000
    ),
}
"""By their rows. What starts from another one goes on from it, with a learning rate that rises and falls again."""
LOOP = "made rows, 96 wide"
"""The Aligner that the loop begins with."""
CODE = real.Size(words=2000, hidden=64, window=640, warm_up=0.3, epochs=0.8, batch=8, rate=3e-3)


def paradetox(options: argparse.Namespace) -> Figures:
    train, tune = tuning_apart(real.rows_of(options.data, "train"))
    known = tune if options.tune else sentences(real.rows_of(options.data, "dev"))
    # What is rude is said by all the training data: the measure is the same whatever is tuned on.
    lexicon = rude.lexicon({**train, **tune})
    models = {name: _measured(options, name, train, [known, tune], lexicon) for name in options.only or RUDE}
    return {
        "data": {"train": len(train), "tune": len(tune), "dev": len(known), "lexicon": len(lexicon)},
        "chosen": max(models, key=lambda name: models[name]["tuned"]["f1"]["mean"]),
        "models": models,
        "baselines": politeness.baselines(known, lexicon),
    }


def _measured(
    options: argparse.Namespace,
    name: str,
    train: rude.Rewrites,
    parts: Sequence[rude.Rewrites],
    lexicon: frozenset[str],
) -> Figures:
    """One Aligner on the part that is told of, and on the one that the best of them is chosen by."""
    aligner, training = trained(options, name, train)
    rows, tuned = (politeness.measure(aligner, part, lexicon, QUESTION) for part in parts)
    return {**asdict(RUDE[name]), "training": training, "rows": rows, "tuned": tuned["checks off"]}


def trained(options: argparse.Namespace, name: str, known: rude.Rewrites) -> tuple[Aligner, Figures]:
    """The Aligner, and what its training took, the one that it starts from included."""
    run, spent, start = RUDE[name], 0, None
    if run.start is not None:
        spent, start = trained(options, run.start, known)[1]["cpu_s"], options.work / f"rude {run.start}"
    some = random.Random(options.seed).sample(sorted(known), round(len(known) * run.share))
    told = _told(run, {text: known[text] for text in some}, options.seed)
    # Another seed draws other neutral sentences, of which there are more than are trained on at once.
    seed = options.seed + list(RUDE).index(name)
    with labelled_only() if run.made else nullcontext():
        aligner, training = real.trained(options.work, f"rude {name}", told, run.size, seed, start)
    return aligner, training | {"cpu_s": training["cpu_s"] + spent}


def _told(run: Run, known: rude.Rewrites, seed: int) -> list[Triple]:
    if not run.made:
        return rude.triples(known, QUESTION, seed)
    words = rude.lexicon(known, share=0.7, least=5)
    fixes = {text: rude.careful_target(text, rewrites, words) for text, rewrites in known.items()}
    edits = made.edits([(text, fix) for text, fix in fixes.items() if fix], rude.neutral(known), words)
    # Who makes as many makes the same ones, and who goes on with more of them makes others.
    return made.triples(edits, QUESTION, run.made, random.Random(seed + run.made))


@contextmanager
def labelled_only() -> Iterator[None]:
    """Lets TRL score only the positions that have a label, which halves a step here and changes nothing but rounding.

    TRL does so where there is Triton. On a CPU it scores the prompt too, three quarters of these rows.
    """
    from trl.trainer import utils

    before, utils._use_triton = utils._use_triton, lambda device: True
    try:
        yield
    finally:
        utils._use_triton = before


def tuning_apart(rows: Sequence[real.Row]) -> tuple[rude.Rewrites, rude.Rewrites]:
    """Sentences to train on, and a sixteenth of them, by their group, to tune on."""
    tuned = [row["group"].startswith("0") for row in rows]
    train, tune = ([row for row, apart in zip(rows, tuned, strict=True) if apart is part] for part in (False, True))
    return sentences(train), sentences(tune)


def sentences(rows: Sequence[real.Row]) -> dict[str, list[str]]:
    """Each distinct sentence with its rewrites."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row["answer"]].append(row["correction"])
    return dict(found)


def rounds(options: argparse.Namespace) -> Figures:
    """The rounds of `loop` with an Aligner of `paradetox`, which is trained here where it is not in the folder."""
    train, tune = tuning_apart(real.rows_of(options.data, "train"))
    measured = tune if options.tune else sentences(real.rows_of(options.data, "dev"))
    known, name = {**train, **tune}, (options.only or [LOOP])[0]
    aligner, _ = trained(options, name, train)
    aligner.close()
    recipe = loop.Recipe(name, options.work / f"rude {name}", replace(RUDE[name].size, epochs=1, rate=1e-3))
    lexicon, wider = rude.lexicon(known), rude.lexicon(known, share=0.7, least=5)
    return loop.Loop(options.work / "loop", train, lexicon, wider, recipe, options.seed).run(measured)


def debugbench(options: argparse.Namespace) -> Figures:
    train, dev = (programs.debugbench(real.rows_of(options.data, part)) for part in ("train", "dev"))
    aligner, training = real.trained(options.work, "programs", real.triples_of(train), CODE, options.seed)
    counts = {"train": len(train.wrong), "dev": len(dev.wrong)}
    return {"data": counts, "size": asdict(CODE), "training": training, "dev": programs.measure(aligner, dev)}


def write(name: str, seed: int, started: float, figures: Figures) -> Path:
    """Writes `real_<name>.json`; `started` is of `time.monotonic`."""
    run = machine_figures(started)
    run["versions"]["aligner_chain"] = __version__
    told: Mapping[str, object] = {"seed": seed, "commit": stored.commit(), **run, "threads": 1, **figures}
    return stored.write(f"real_{name}", told)


RUNS = {"paradetox": paradetox, "debugbench": debugbench, "loop": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNS, "show"])
    parser.add_argument("--data", type=Path, help="the folder with train.jsonl and dev.jsonl")
    parser.add_argument("--work", type=Path, default=Path("real-work"), help="where trained models are kept")
    parser.add_argument("--only", choices=RUDE, action="append", help="this Aligner alone; repeatable")
    parser.add_argument("--tune", action="store_true", help="measure on the tuning part, write no file")
    parser.add_argument("--seed", type=int, default=10)
    options = parser.parse_args()
    if options.what == "show":
        tables.show()
        return
    if options.data is None:
        parser.error(f"{options.what} needs --data")
    started = time.monotonic()
    figures = RUNS[options.what](options)
    if not options.tune:
        print(write(options.what, options.seed, started, figures))
    print("\n".join(tables.TABLES[f"real_{options.what}"](figures)))


if __name__ == "__main__":
    main()
