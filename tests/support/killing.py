"""A round of seconds that is killed where one likes, in processes that are forked from one with everything imported."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import micro

from aligner_chain.engines.base import Sampling
from aligner_chain.exchange import Correction, Exchange, edits_between
from aligner_chain.serving import read_served
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.evaluation import GatePolicy
from bootstrap.files import tree_sha256
from bootstrap.measures import Yardstick
from bootstrap.registry import Registry
from bootstrap.rounds import Ledger, RoundConfig, Rounds
from bootstrap.store import CorrectionStore
from bootstrap.training import Launcher
from bootstrap.upstream import DPOSettings

STEPS, SAVE_EVERY = 6, 2


def new_is_right(exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
    """A judge for whom whatever a candidate wrote is right, so that each round comes to its end."""
    return [{"new": (one.upstream or "").startswith("candidate@")} for one in exchanges]


def any_is_fit(corrections: Sequence[Correction]) -> list[bool]:
    return [one.outcome in ("approved", "corrected") for one in corrections]


def config(folder: Path, models: Path) -> RoundConfig:
    return RoundConfig(
        store=folder / "corrections.db",
        home=folder / "home",
        base_upstream=models / "upstream",
        base_aligner=models / "aligner",
        yardstick=Yardstick(judge=new_is_right),
        verifier=any_is_fit,
        gold=tuple(micro.triples()[:40]),
        known_right=(Exchange.of("say tea sun", "tea sun is good"),),
        answering=Answering(sampling=Sampling(temperature=1.0), max_new=8),
        dpo=DPOSettings(
            steps=STEPS, batch=4, learning_rate=1e-3, lora=None, save_every=SAVE_EVERY, threads=1, extra=micro.FAST
        ),
        aligner=AlignerTrainingSettings(
            warm_up=None,
            correction=replace(micro.settings(STEPS, save_every=SAVE_EVERY, threads=1), learning_rate=1e-4),
        ),
        launcher=Launcher.here(),
        policy=GatePolicy(
            alpha=0.5, criterion_margin=1.0, refusal_margin=1.0, damaged=1.0, length_ratio=None, health={}
        ),
        margin=1.0,
        pair_margin=1.0,
        least_pairs=5,
        regenerate=16,
        tries=50,
    )


def start(folder: Path, models: Path) -> None:
    """A store with live traffic and a served pair."""
    with contextlib.closing(CorrectionStore(folder / "corrections.db")) as store:
        store.append(map(_correction, micro.questions()[:60]))
    registry = Registry(folder / "home")
    versions = [
        registry.add(kind, lambda out, kind=kind: shutil.copytree(models / kind, out, dirs_exist_ok=True), {})
        for kind in ("upstream", "aligner")
    ]
    registry.promote(versions[0], versions[1], figures={})


def _correction(question: str) -> Correction:
    answer, text = (micro.answer(question, verdict) for verdict in ("bad", "good"))
    return Correction(
        exchange=replace(Exchange.of(question, answer), upstream="upstream@1"),
        text=text,
        outcome="corrected",
        edits=edits_between(answer, text),
        aligner="aligner@1",
        template="aligner-chain/1",
    )


def work(folder: Path, models: Path, kill: tuple[str, str] | None) -> None:
    """Resumes a round or runs one, and kills itself at a stage's moment; what happened is in `told.jsonl`."""
    told = os.open(folder / "told.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def watch(stage: str, moment: str) -> None:
        os.write(told, json.dumps([stage, moment]).encode() + b"\n")
        if (stage, moment) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    rounds = Rounds(config=config(folder, models), watch=watch, lease_s=0.5)
    if rounds.resume() is None and not Ledger(Registry(folder / "home").database).rounds():
        rounds.run()


def forkserver() -> ForkServerContext:
    """Processes that have torch and the trainers imported when they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "trl", "datasets", "transformers.models.llama", "killing"])
    return context


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Looks all the while whether the served pair can be loaded: its record can be read and its weights are whole."""
    import threading

    over, broken = threading.Event(), list[str]()

    def look() -> None:
        while not over.wait(0.02):
            served = read_served(folder / "home")
            for model in (served and served.upstream, served and served.aligner):
                if model is None or not (model.path / "model.safetensors").is_file():
                    broken.append(str(served))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not broken, broken[0]


def run(context: ForkServerContext, folder: Path, models: Path, *, kill: tuple[str, str] | float | None = None) -> int:
    """Works at the round in a process, killed at a stage's moment or after so many seconds; returns its exit code."""
    at = kill if isinstance(kill, tuple) else None
    process = context.Process(target=work, args=(folder, models, at))
    with watched(folder):
        process.start()
        if isinstance(kill, float):
            time.sleep(kill)
            process.kill()
        process.join(120)
    assert process.exitcode is not None, "the round hung"
    return process.exitcode


def outcome(folder: Path) -> dict[str, object]:
    """How the round ended, with the hashes of what is served."""
    registry = Registry(folder / "home")
    rounds, served = Ledger(registry.database).rounds(), registry.served()
    assert served is not None
    assert served.upstream is not None
    return {
        "rounds": [(one.status, one.pair) for one in rounds],
        "versions": [len(registry.versions(kind)) for kind in ("upstream", "aligner")],
        "upstream": tree_sha256(served.upstream.path),
        "aligner": tree_sha256(served.aligner.path),
        "left": sorted(path.name for path in (folder / "home" / "rounds").iterdir()),
    }


def told(folder: Path) -> list[tuple[str, str]]:
    """The stages' moments of all processes, in their order."""
    return [tuple(json.loads(line)) for line in (folder / "told.jsonl").read_text().splitlines()]
