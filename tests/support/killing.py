"""A round of seconds that is killed where one likes, in processes that are forked from one with everything imported."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import micro
from safetensors.torch import load_file, save_file

from aligner_chain.engines.base import Sampling
from aligner_chain.exchange import Correction, Exchange, edits_between
from aligner_chain.serving import read_served
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.evaluation import GatePolicy
from bootstrap.files import tree_sha256
from bootstrap.journal import STEPS as STEPS_FILE
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
    """The rounds of a folder that `start` made, or `start_for_a_provider`."""
    provider = Registry(folder / "home").pair(1).upstream is None
    return RoundConfig(
        store=folder / "corrections.db",
        home=folder / "home",
        base_upstream=None if provider else models / "upstream",
        base_aligner=models / "aligner",
        yardstick=Yardstick(judge=micro.judge if provider else new_is_right),
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
    _collect(folder, map(_correction, micro.questions()[:60]))
    registry = Registry(folder / "home")
    versions = [
        registry.add(kind, lambda out, kind=kind: shutil.copytree(models / kind, out, dirs_exist_ok=True), {})
        for kind in ("upstream", "aligner")
    ]
    registry.promote(versions[0], versions[1], figures={})


def start_for_a_provider(folder: Path, models: Path) -> None:
    """Traffic of an upstream that nobody here has and that is right now and then, and an Aligner that corrects nothing."""
    rows = enumerate(map(_correction, micro.questions()))
    _collect(folder, (one if number % 4 else _approved(one) for number, one in rows))

    def write(out: Path) -> None:
        shutil.copytree(models / "aligner", out, dirs_exist_ok=True)
        weights = load_file(out / "model.safetensors")
        weights["model.norm.weight"].zero_()
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})

    registry = Registry(folder / "home")
    registry.promote(None, registry.add("aligner", write, {}), figures={})


def _collect(folder: Path, rows: Iterable[Correction]) -> None:
    with contextlib.closing(CorrectionStore(folder / "corrections.db")) as store:
        store.append(rows)


def _approved(one: Correction) -> Correction:
    return replace(one, exchange=replace(one.exchange, answer=one.text), outcome="approved", edits=())


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
    """Resumes a round or runs one, and kills itself at a stage's moment; what happened is in `told.jsonl`.

    The moment "step 3" of a training is when three steps are noted, at the next file that is opened: where a checkpoint is
    due after that step, this is amidst writing it.
    """
    if kill is not None and kill[1].startswith("step "):
        _kill_after_steps(kill[0], int(kill[1].removeprefix("step ")))
    told = os.open(folder / "told.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def watch(stage: str, moment: str) -> None:
        os.write(told, json.dumps([stage, moment]).encode() + b"\n")
        if (stage, moment) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    rounds = Rounds(config=config(folder, models), watch=watch, lease_s=0.5)
    if rounds.resume() is None and not Ledger(Registry(folder / "home").database).rounds():
        rounds.run()


def _kill_after_steps(stage: str, steps: int) -> None:
    """Kills this process once a training of the stage has noted so many steps."""
    noted = -1  # the first line says where the training begins

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal noted
        if event != "open" or f"{stage}.work" not in str(arguments[0]):
            return
        if noted == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        noted += str(arguments[0]).endswith(STEPS_FILE)

    sys.addaudithook(look)


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
                if model is not None and not (model.path / "model.safetensors").is_file():
                    broken.append(str(served))
            if served is None:
                broken.append("nothing is served")

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
    return {
        "rounds": [(one.status, one.pair) for one in rounds],
        "versions": [len(registry.versions(kind)) for kind in ("upstream", "aligner")],
        "upstream": served.upstream and tree_sha256(served.upstream.path),
        "aligner": tree_sha256(served.aligner.path),
        "left": sorted(path.name for path in (folder / "home" / "rounds").iterdir()),
    }


def done_again(folder: Path) -> dict[str, list[int]]:
    """Of each training, how many steps were done a second time each time that it went on."""
    (one,) = Ledger(Registry(folder / "home").database).rounds()
    found = {stage: one.result(stage).get("trainings", {}) for stage in ("train_upstream", "train_aligner")}
    return {
        stage: [steps for training in some.values() for steps in training["again"]] for stage, some in found.items()
    }


def told(folder: Path) -> list[tuple[str, str]]:
    """The stages' moments of all processes, in their order."""
    return [tuple(json.loads(line)) for line in (folder / "told.jsonl").read_text().splitlines()]
