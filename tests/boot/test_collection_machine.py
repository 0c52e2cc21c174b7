"""Any order of collecting, feedback, deletion, exports, crashes and replays, for a store in a file and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import collection_machine

from bootstrap.records import Record, split_of


def test_any_sequence_keeps_the_invariants(url: str, tmp_path: Path) -> None:
    collection_machine.run(url, tmp_path, examples=6 if url.startswith("sqlite") else 3, steps=20)


def test_the_prompts_of_the_machine_are_held_out_and_trained_on_and_both() -> None:
    splits: dict[str, set[str]] = {}
    for one in collection_machine.CORRECTIONS.values():
        splits.setdefault(Record(correction=one).prompt, set()).add(
            split_of(one.exchange.turns, one.exchange.split_key)
        )
    found = {frozenset(one) for one in splits.values()}
    assert frozenset({"train"}) in found
    assert any({"train"} < one for one in found)
