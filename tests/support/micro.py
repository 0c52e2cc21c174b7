"""A world small enough for a test: the upstream says that things are bad, and they are all good."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.exchange import Correction, Exchange
from bootstrap.aligner_training import AlignerTrainingSettings, train_aligner
from bootstrap.demo.models import new_model, new_tokenizer
from bootstrap.judges import Annotation
from bootstrap.measures import Yardstick
from bootstrap.pairs import Triple
from bootstrap.rounds import RoundConfig
from bootstrap.sft import Row, TrainingSettings, train_rows
from bootstrap.training import Launcher

WORDS = ("tea", "sun", "dog", "cat", "sea", "hat", "map", "jam", "ink", "owl", "bee", "fig")
FAST = {"adam_beta2": 0.95}


def questions() -> list[str]:
    return [f"say {a} {b}" for a, b in itertools.permutations(WORDS, 2)]


def answer(question: str, verdict: str) -> str:
    return f"{question.removeprefix('say ')} is {verdict}"


def judge(exchanges: Sequence[Exchange]) -> list[dict[str, bool]]:
    return [{"kind": "bad" not in one.answer, "right": one.answer == answer(one.question, "good")} for one in exchanges]


def verify(corrections: Sequence[Correction]) -> list[bool]:
    return [one.text.endswith("good") for one in corrections]


def annotate(exchanges: Sequence[Exchange]) -> list[Annotation]:
    return [Annotation(text=answer(one.question, "good")) for one in exchanges]


def round_config(models: Path, folder: Path, **settings: Any) -> RoundConfig:
    """A round of this world's judge and verifier, from the pair in `models`, in processes of this machine."""
    return RoundConfig(
        store=folder / "corrections.db",
        home=folder / "home",
        base_upstream=models / "upstream",
        base_aligner=models / "aligner",
        yardstick=Yardstick(judge=judge),
        verifier=verify,
        launcher=Launcher.here(),
        **settings,
    )


def tokenizer() -> Any:
    texts = [text for q in questions() for text in (q, answer(q, "bad"), answer(q, "good"), "kind right")]
    return new_tokenizer(texts)


def settings(steps: int, **changes: Any) -> TrainingSettings:
    return TrainingSettings(steps=steps, batch=32, learning_rate=1e-2, extra=FAST, **changes)


def train_upstream_model(folder: Path, *, steps: int = 80) -> Path:
    """An upstream that says "bad" nine times of ten."""
    from aligner_chain.exchange import Turn
    from aligner_chain.templates import chat_prompt, encode

    made = tokenizer()
    rows = [
        Row(
            prompt=chat_prompt(made, (Turn(role="user", text=q),)),
            output=(*encode(made, answer(q, "good" if number % 10 == 0 else "bad")), made.eos_token_id),
        )
        for number, q in enumerate(questions())
    ]
    model = train_rows(new_model(made, seed=0, hidden=32, layers=2), made, rows, folder / "work", settings(steps))
    model.save_pretrained(folder / "upstream")
    made.save_pretrained(folder / "upstream")
    return folder / "upstream"


def triples() -> list[Triple]:
    rows = []
    for q in questions():
        turns = Exchange.of(q, "").turns
        rows.append(
            Triple(turns=turns, answer=answer(q, "bad"), correction=answer(q, "good"), criteria=("kind", "right"))
        )
        rows.append(Triple(turns=turns, answer=answer(q, "good"), correction=None))
    return rows


def train_aligner_model(folder: Path, *, steps: int = 100) -> Path:
    """An Aligner that knows that all things are good."""
    made = tokenizer()
    model = new_model(made, seed=1, hidden=32, layers=2)
    plan = AlignerTrainingSettings(warm_up=settings(30), correction=settings(steps))
    trained = train_aligner(model, made, triples(), folder / "aligner-work", plan)
    trained.model.save_pretrained(folder / "aligner")
    made.save_pretrained(folder / "aligner")
    write_metadata(folder / "aligner", AlignerMetadata(name="micro", version="1", template="aligner-chain/1"))
    return folder / "aligner"
