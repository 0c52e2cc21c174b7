"""The answers of a provider's upstream: as they were recorded, since nobody here can ask it again."""

from __future__ import annotations

from aligner_chain.exchange import Exchange
from bootstrap.records import Split
from bootstrap.store import CorrectionStore

MORE_HELD_OUT = "About a tenth of all prompts are held out for it: collect more of them, and give no split_key that all of them share."
"""What is told where no prompt is held out, so that nothing can be measured."""


def recorded_answers(store: CorrectionStore, split: Split) -> list[Exchange]:
    """The newest answer to each prompt of a split, as the upstream gave it, oldest first."""
    newest: dict[object, Exchange] = {}
    for record in store.records(split, newest_first=True):
        exchange = record.correction.exchange
        newest.setdefault((exchange.turns, exchange.context), exchange)
    return list(newest.values())[::-1]


def recorded_upstream(answers: list[Exchange]) -> str | None:
    """The name of the model that gave all of these answers; None where there were several."""
    names = {one.upstream for one in answers}
    return names.pop() if len(names) == 1 else None
