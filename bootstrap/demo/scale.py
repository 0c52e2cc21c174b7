"""How large a demo is: the full one, to which the figures belong, and a quick one that runs the same code."""

from __future__ import annotations

from dataclasses import dataclass

from bootstrap.demo.world import SMALL_DESK, WHOLE_DESK, Desk


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Rows per optimiser step, and how many threads of the CPU train (None: as many as PyTorch uses)."""

    batch: int = 8
    threads: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale(Pace):
    """The part of the world, and counts of rows, optimiser steps and prompts; batches are in rows.

    `population` answers are sampled from each of four upstreams for the Aligner's gold set, `damaged` are made by
    damaging right answers. `live` prompts are answered live per round; `gate` and `report` are held out, `right` are
    the right answers that must be kept. Batches are small, since models as small as these learn more in the same time
    from many steps than from many rows a step. Answers are written by one thread of the CPU.
    """

    desk: Desk
    rows: int
    base_steps: int
    upstream_steps: int
    trial_pairs: int
    trial_steps: int
    population: int
    damaged: int
    warm_up_steps: int
    aligner_steps: int
    retrain_steps: int
    dpo_epochs: float
    live: int
    gate: int
    report: int
    right: int
    unseen: int


FULL = Scale(
    desk=WHOLE_DESK,
    rows=5_600,
    base_steps=1500,
    upstream_steps=700,
    trial_pairs=240,
    trial_steps=30,
    population=700,
    damaged=2_800,
    warm_up_steps=400,
    aligner_steps=800,
    retrain_steps=300,
    dpo_epochs=5.0,
    live=700,
    gate=800,
    report=640,
    right=1_000,
    unseen=100,
)

QUICK = Scale(
    desk=SMALL_DESK,
    rows=1_200,
    base_steps=240,
    upstream_steps=120,
    trial_pairs=32,
    trial_steps=4,
    population=40,
    damaged=1_200,
    warm_up_steps=180,
    aligner_steps=260,
    retrain_steps=40,
    dpo_epochs=1.0,
    live=120,
    gate=120,
    report=80,
    right=80,
    unseen=20,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RagScale(Pace):
    """Counts of optimiser steps and of held-out questions of the demo with passages.

    `lookup_steps` teach to look windows up, `base_steps` to answer and correct by them. `gate` and `report` questions
    are held out, one half about known products and one about unseen ones; `right` are answers that must be kept. `first`
    is the share of training in which the passage of the product is the first one: with 1 a model soon learns to go by its
    place, and never to go by its name.
    """

    lookup_steps: int
    base_steps: int
    upstream_steps: int
    aligner_steps: int
    gate: int
    report: int
    right: int
    first: float = 0.5


RAG_FULL = RagScale(
    lookup_steps=300, base_steps=1400, upstream_steps=350, aligner_steps=1000, gate=200, report=600, right=500
)
RAG_QUICK = RagScale(
    lookup_steps=180, base_steps=260, upstream_steps=90, aligner_steps=110, gate=160, report=80, right=60, first=1.0
)
