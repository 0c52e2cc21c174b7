"""Right repairs of wrong answers of the support desk: no check may refuse or change one."""

from __future__ import annotations

import random
from collections.abc import Iterator

from aligner_chain.exchange import Correction, Exchange, edits_between
from bootstrap.demo import rag_world, world


def plain(each: int, seed: int) -> Iterator[Correction]:
    """Repairs of answers with one thing wrong, and of as many in which a sentence went astray; `each` of both."""
    rng = random.Random(seed)
    for make in (world.once_damaged_answer, world.slipped_answer):
        for _ in range(each):
            ticket = world.draw_ticket(rng)
            answer = make(rng, ticket)
            yield _repair(Exchange.of(ticket.question(), answer), world.repair(ticket, answer))


def with_passages(drawn: int, seed: int, *, cited: bool) -> Iterator[Correction]:
    """Repairs of those of so many drawn answers that contradict their passages; `cited` ones have citation marks."""
    rng = random.Random(seed)
    for _ in range(drawn):
        case = rag_world.draw_training_case(rng)
        exchange = case.exchange(rng, rag_world.flawed_answer(rng, case, rag_world.GOLD))
        texts = (exchange.answer, rag_world.repair(exchange))
        answer, text = (_cited(one, case) if cited else one for one in texts)
        if answer != text:
            yield _repair(Exchange.of(exchange.question, answer, context=exchange.context), text)


def _cited(answer: str, case: rag_world.Case) -> str:
    sentences = world.split_sentences(answer)
    for product, number in zip(case.policy, range(1, 9), strict=False):
        sentences = [f"{one[:-1]} [{number}]." if f"{product} " in one and "]" not in one else one for one in sentences]
    return " ".join(sentences)


def _repair(exchange: Exchange, text: str) -> Correction:
    edits = edits_between(exchange.answer, text)
    return Correction(exchange=exchange, text=text, outcome="corrected", edits=edits)
