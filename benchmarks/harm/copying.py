"""An Aligner without a verdict, trained for the copy score: in a template of the published ones, from the demo's base."""

from __future__ import annotations

import random
from pathlib import Path

import desk

from aligner_chain import Aligner
from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.engines.loading import load
from bootstrap.aligner_training import AlignerTrainingSettings, train_aligner
from bootstrap.demo.scale import FULL
from bootstrap.demo.start import ALIGNER_RATE, _damaged, _triples, demo_training
from bootstrap.pairs import Triple

TEMPLATE = "pku-aligner/2"


def copying_aligner(demo: Path, work: Path, seed: int) -> Aligner:
    """Trains it once; later calls load it from `work`."""
    folder = work / "copying"
    if not (folder / "aligner.json").exists():
        _train(demo, folder, seed)
    return Aligner.from_pretrained(folder)


def gold(demo: Path, seed: int) -> list[Triple]:
    """As for the demo's own Aligner: half samples of the upstream, half right answers damaged with known inverses."""
    rng = random.Random(f"{seed} copying")
    some = desk.prompts(rng, desk.training, "train")
    answers = desk.upstream_answers(demo, [next(some) for _ in range(FULL.damaged)], seed)
    return [*_triples([*answers.right, *answers.wrong]), *(_damaged(rng, FULL.desk) for _ in range(FULL.damaged))]


def _train(demo: Path, folder: Path, seed: int) -> None:
    model, tokenizer = load(demo / "start" / "base", revision=None, device="cpu", dtype="float32")
    settings = AlignerTrainingSettings(
        # More steps than the demo takes: its base has seen no delimiters in plain text.
        warm_up=demo_training(FULL, seed, steps=FULL.warm_up_steps, rate=ALIGNER_RATE, bucketed=True),
        correction=demo_training(FULL, seed, steps=FULL.aligner_steps * 3 // 2, rate=ALIGNER_RATE, bucketed=True),
        template=TEMPLATE,
        seed=seed,
    )
    trained = train_aligner(model, tokenizer, gold(demo, seed), folder / "work", settings)
    trained.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_metadata(folder, AlignerMetadata(name="copying", version=str(seed), template=TEMPLATE))
