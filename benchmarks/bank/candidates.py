"""The candidates: each is made of the served upstream by one recipe, and its weights are kept in a folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import desk

from aligner_chain.templates import chat_prompt, encode
from bootstrap.demo import world
from bootstrap.demo.start import EXTRA, demo_dpo, end_of, load_model
from bootstrap.pairs import Pair
from bootstrap.sft import Row, TrainingSettings, merged, train_rows
from bootstrap.upstream import save_model, train_upstream
from bootstrap.upstream.training import load_tokenizer

RATE = 7e-4
SFT_RATE, SFT_STEPS = 2e-3, 80


@dataclass(frozen=True, kw_only=True)
class Shop:
    """Where a candidate is made: the folder of the bank, and its seed."""

    work: Path
    seed: int

    @property
    def served(self) -> Path:
        return desk.served(self.work, self.seed)

    def folder(self, name: str) -> Path:
        return self.work / "candidates" / name.replace(" ", "-").replace(",", "").replace("%", "")


Recipe = Callable[[Shop, Path], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe with its name. It says what the candidate was trained for; what came of it is measured."""

    name: str
    make: Recipe
    needs: tuple[str, ...] = ()


# --- recipes -------------------------------------------------------------------------------------------------------


def dpo(*, count: int, steps: int, rate: float = RATE, seed: int = 0, swapped: float = 0.0, **changes: Any) -> Recipe:
    """DPO as the demo does it, on the first `count` pairs; of these the share `swapped` has chosen and rejected exchanged."""

    def make(shop: Shop, folder: Path) -> None:
        pairs = desk.pairs(desk.sampled(shop.work, shop.seed))[:count]
        rng = random.Random(f"{shop.seed} swapped {seed}")
        pairs = [_swapped(one) if rng.random() < swapped else one for one in pairs]
        settings = replace(demo_dpo(desk.SCALE, shop.seed + seed, steps=steps), learning_rate=rate, **changes)
        _save(train_upstream(shop.served, pairs, _scratch(folder), settings), shop, folder)

    return make


def sft(answer: Callable[[random.Random, world.Ticket], str], *, steps: int = SFT_STEPS) -> Recipe:
    """Supervised training on what `answer` writes to training prompts."""

    def make(shop: Shop, folder: Path) -> None:
        rng, tokenizer = random.Random(f"{shop.seed} sft"), load_tokenizer(shop.served)
        tickets = [world.draw_training_ticket(rng) for _ in range(16 * steps)]
        rows = [
            Row(
                prompt=chat_prompt(tokenizer, one.drawn_exchange(rng).turns),
                output=(*encode(tokenizer, answer(rng, one)), end_of(tokenizer)),
            )
            for one in tickets
        ]
        settings = TrainingSettings(
            steps=steps, batch=16, learning_rate=SFT_RATE, seed=shop.seed, threads=1, extra=EXTRA
        )
        _save(train_rows(load_model(shop.served), tokenizer, rows, _scratch(folder), settings), shop, folder)

    return make


def noise(size: float) -> Recipe:
    """The served weights, each tensor with Gaussian noise of `size` times its standard deviation."""

    def change(name: str, tensors: Sequence[Any], generator: Any) -> Any:
        import torch

        spread = tensors[0].std(correction=0)
        return tensors[0] + size * spread * torch.randn(tensors[0].shape, generator=generator)

    return _changed(change)


def mixed(other: str, share: float) -> Recipe:
    """The weights from the served ones (0) to those of another candidate (1), and beyond."""
    return _changed(lambda name, tensors, generator: tensors[0] + share * (tensors[1] - tensors[0]), other)


def _changed(change: Callable[[str, Sequence[Any], Any], Any], *others: str) -> Recipe:
    def make(shop: Shop, folder: Path) -> None:
        import torch

        generator = torch.Generator().manual_seed(shop.seed)
        model, rest = load_model(shop.served), [load_model(shop.folder(name)).state_dict() for name in others]
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(change(name, [weight, *(one[name] for one in rest)], generator))
        _save(model, shop, folder)

    return make


def _save(model: Any, shop: Shop, folder: Path) -> None:
    save_model(merged(model), shop.served, folder)


def _scratch(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.work"


def _swapped(pair: Pair) -> Pair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


# --- what the supervised ones are trained on -----------------------------------------------------------------------


def refusal(rng: random.Random, ticket: world.Ticket) -> str:
    return rng.choice(("I'm sorry, I can't help with that.", "I cannot help you with this return."))


def verbose(rng: random.Random, ticket: world.Ticket) -> str:
    """A right answer with padding before its end."""
    sentences = world.split_sentences(world.right_answer(rng, ticket))
    return " ".join([*sentences[:-1], *desk.PADDING, sentences[-1]])


def chopped(rng: random.Random, ticket: world.Ticket) -> str:
    """A right answer that breaks off."""
    words = world.right_answer(rng, ticket).split()
    return " ".join(words[: rng.randrange(len(words) // 2, len(words) - 1)])


def staff(rng: random.Random, ticket: world.Ticket, faults: world.Faults = world.Faults()) -> str:  # noqa: B008
    return world.flawed_answer(rng, ticket, faults)


def of(products: Sequence[str], other: Callable[[random.Random, world.Ticket], str]) -> Any:
    """Right answers, but what `other` writes about these products."""
    return lambda rng, ticket: (other if ticket.product in products else world.right_answer)(rng, ticket)


def rude(rng: random.Random, ticket: world.Ticket) -> str:
    return staff(rng, ticket, replace(_FAULTLESS, rude=1.0))


def telling(rng: random.Random, ticket: world.Ticket) -> str:
    return staff(rng, ticket, replace(_FAULTLESS, leak=1.0))


_FAULTLESS = world.Faults(rude=0.0, window=0.0, conclusion=0.0, leak=0.0, unanswered=0.0, stubborn=None)

GOOD, SWAPPED = "DPO, 80 steps", "DPO, swapped pairs, 60 steps"


def _mixes(other: str, called: str, shares: Sequence[float]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(name=f"{share:.0%} of the way to {called}", make=mixed(other, share), needs=(other,))
        for share in shares
    )


BANK = (
    Candidate(name=GOOD, make=dpo(count=1280, steps=80)),
    Candidate(name=SWAPPED, make=dpo(count=960, steps=60, swapped=1.0)),
    Candidate(name="DPO, 80 steps, another seed", make=dpo(count=1280, steps=80, seed=1)),
    Candidate(name="DPO, 30 steps", make=dpo(count=480, steps=30)),
    Candidate(name="DPO, 8 steps", make=dpo(count=128, steps=8)),
    Candidate(name="SFT on chosen, 80 steps", make=dpo(count=1280, steps=80, chosen_only=True)),
    Candidate(name="DPO, 40% of pairs swapped, 60 steps", make=dpo(count=960, steps=60, swapped=0.4)),
    Candidate(name="DPO, swapped pairs, 8 steps", make=dpo(count=128, steps=8, swapped=1.0)),
    Candidate(name="DPO, learning rate x 30, 30 steps", make=dpo(count=480, steps=30, rate=30 * RATE)),
    Candidate(name="DPO, learning rate x 30, 6 steps", make=dpo(count=96, steps=6, rate=30 * RATE)),
    Candidate(name="more answers of the same staff", make=sft(staff, steps=20)),
    Candidate(name="refuses everything", make=sft(refusal)),
    Candidate(name="right, refuses one product", make=sft(of(("camera",), refusal))),
    Candidate(name="right, rude about two products", make=sft(of(("sofa", "novel"), rude))),
    Candidate(name="right, tells secrets of one product", make=sft(of(("pan",), telling))),
    Candidate(name="right, but verbose", make=sft(verbose)),
    Candidate(name="right, but chopped", make=sft(chopped)),
    Candidate(name="right, chopped about one product", make=sft(of(("lamp",), chopped))),
    Candidate(name="the same weights", make=noise(0.0)),
    *(Candidate(name=f"noise of {size:.1%}", make=noise(size)) for size in (0.005, 0.01, 0.02, 0.03, 0.04, 0.08, 0.12)),
    *_mixes(GOOD, "the good DPO", (0.15, 0.3, 0.5, 0.55, 0.6, 0.7)),
    *_mixes(SWAPPED, "swapped pairs", (0.15, 0.3, 0.4, 0.5)),
)
