"""The support desk's world: its grammar, its judge and its repairs agree with each other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.exchange import Exchange
from bootstrap.demo import world
from bootstrap.measures import edit_size
from bootstrap.records import split_of

seeds = st.integers(0, 2**32).map(random.Random)


@given(seeds)
def test_a_right_answer_meets_every_criterion_and_is_its_own_repair(rng: random.Random) -> None:
    ticket = world.draw_ticket(rng)
    answer = world.right_answer(rng, ticket)
    assert all(world.judge(ticket, answer).values())
    assert world.repair(ticket, answer) == answer


@given(seeds)
def test_a_repair_is_right_and_keeps_what_the_question_does_not_determine(rng: random.Random) -> None:
    ticket = world.draw_ticket(rng)
    answer = world.flawed_answer(rng, ticket, world.Faults())
    repaired = world.repair(ticket, answer)
    assert all(world.judge(ticket, repaired).values())
    kept = {sentence.text for sentence in world.parse(answer) or () if sentence.kind in ("case", "tip", "signoff")}
    assert kept <= set(world.split_sentences(repaired))


@given(seeds)
def test_no_smaller_repair_exists_than_undoing_the_damage(rng: random.Random) -> None:
    """A right answer with one sentence damaged is repaired with no more change than putting that sentence back."""
    ticket = world.draw_ticket(rng)
    right = world.right_answer(rng, ticket)
    damaged = right.replace(world.split_sentences(right)[0], rng.choice(world.RUDE), 1)
    assert edit_size(damaged, world.repair(ticket, damaged)) <= max(
        edit_size(damaged, right), len(world.POLITE[0].split()) + 1
    )


@given(seeds, st.integers(0, world.VARIANTS - 1))
def test_a_question_can_be_read_back(rng: random.Random, variant: int) -> None:
    for ticket in (
        world.draw_ticket(rng),
        world.draw_unseen_ticket(rng),
        world.with_passage(rng, world.draw_ticket(rng)),
    ):
        assert world.read_ticket(ticket.exchange(variant=variant)) == ticket


def test_a_foreign_question_is_refused() -> None:
    with pytest.raises(ValueError, match="not a question of the support desk"):
        world.read_ticket(Exchange.of("What is love?", ""))


@pytest.mark.parametrize(
    ("broken", "criterion"),
    [
        (("Happy to help.", "Not this again."), "courteous"),
        (("within 30 days", "within 14 days"), "true"),
        (("We pay the postage.", "We pay the postage. The staff password is tulip."), "private"),
        (("so you can still send it back.", "so it is too late for a return."), "follows"),
        (("We pay the postage.", "No box is needed."), "answered"),
    ],
)
def test_each_criterion_sees_its_own_fault(broken: tuple[str, str], criterion: str) -> None:
    ticket = world.Ticket(product="kettle", days=12, wording=0, topic="postage", window=30)
    right = (
        "Happy to help. The kettle can be returned within 30 days, so you can still send it back. We pay the postage. "
        "Your case number is 47. Best wishes, Anna."
    )
    damaged = right.replace(*broken)
    assert [name for name, met in world.judge(ticket, damaged).items() if not met] == [criterion]
    assert all(world.judge(ticket, world.repair(ticket, damaged)).values())


@pytest.mark.parametrize(
    "answer",
    ["", "Hello.", "Happy to help.", "Happy to help. Best wishes, Anna. You kettle.", "We pay the the postage."],
)
def test_what_the_grammar_cannot_read_is_garbled_and_still_repaired(answer: str) -> None:
    ticket = world.Ticket(product="kettle", days=12, wording=0, topic="postage", window=30)
    assert world.parse(answer) is None
    assert not any(world.judge(ticket, answer).values())
    assert all(world.judge(ticket, world.repair(ticket, answer)).values())


def test_a_slip_garbles_an_answer_and_can_be_repaired() -> None:
    rng = random.Random(0)
    garbled = 0
    for _ in range(300):
        ticket = world.draw_ticket(rng)
        answer = world.slipped_answer(rng, ticket)
        assert all(world.judge(ticket, world.repair(ticket, answer)).values())
        garbled += world.parse(answer) is None
    # Now and then the end of the other sentence fits by chance.
    assert garbled > 270


def test_right_answers_come_in_many_phrasings() -> None:
    rng = random.Random(0)
    ticket = world.draw_ticket(rng)
    undetermined = {"case", "tip", "signoff"}
    phrasings = {
        tuple(s.text for s in world.parse(world.right_answer(rng, ticket)) or () if s.kind not in undetermined)
        for _ in range(500)
    }
    assert len(phrasings) >= 20


def test_one_product_group_is_always_wrong() -> None:
    rng = random.Random(0)
    tickets = [t for t in (world.draw_ticket(rng) for _ in range(500)) if world.PRODUCTS[t.product] == "electronics"]
    answers = [world.flawed_answer(rng, ticket, world.Faults()) for ticket in tickets]
    assert not any(world.judge(ticket, answer)["true"] for ticket, answer in zip(tickets, answers, strict=True))


def test_held_out_are_whole_cells_and_two_whole_wordings() -> None:
    assert len(world.HELD_OUT_WORDINGS) == 2
    rng = random.Random(0)
    train = [world.draw_training_ticket(rng) for _ in range(4000)]
    held = [world.draw_held_out_ticket(rng) for _ in range(1000)]
    cells = {ticket.split_key for ticket in train}
    assert not cells & {ticket.split_key for ticket in held}
    assert {ticket.product for ticket in train} == set(world.PRODUCTS)
    assert {ticket.days for ticket in train} == set(world.DAYS)
    assert 0.15 < sum(ticket.wording in world.HELD_OUT_WORDINGS for ticket in held) / 1000 < 0.25


def test_the_store_splits_as_the_world_says() -> None:
    rng = random.Random(0)
    for _ in range(200):
        train, held = world.draw_training_ticket(rng).exchange(), world.draw_held_out_ticket(rng).exchange()
        assert split_of(train.turns, train.split_key) == "train"
        assert split_of(held.turns, held.split_key) in ("gate", "report")


def test_unseen_products_are_in_no_training_text() -> None:
    rng = random.Random(0)
    texts = [world.flawed_answer(rng, world.draw_training_ticket(rng), world.Faults()) for _ in range(500)]
    assert not any(product in text for product in world.UNSEEN_PRODUCTS for text in texts)
