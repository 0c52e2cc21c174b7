"""Near-duplicates: who is found near whom, in a database that is left as it was."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import func, select

from bootstrap.neighbours import MOST_IN_A_BUCKET, Neighbours, shingles
from bootstrap.tables import NEIGHBOURS


def text(rng: random.Random, words: int = 60) -> list[str]:
    return [
        f"{rng.choice('bcdfgh')}{rng.randrange(97)}x".translate(str.maketrans("0123456789", "aeiouklmnp"))
        for _ in range(words)
    ]


def changed(rng: random.Random, words: list[str], share: float) -> list[str]:
    return ["other" if rng.random() < share else word for word in words]


def rows(store) -> int:
    with store.database.read() as connection:
        return connection.execute(select(func.count()).select_from(NEIGHBOURS)).scalar_one()


def test_slight_variations_are_found_and_others_are_not(store):
    rng = random.Random(0)
    known = [text(rng) for _ in range(700)]
    with Neighbours(store.database, "texts") as texts:
        texts.add([(f"{at:04}", " ".join(words)) for at, words in enumerate(known)])
        slight = [" ".join([*words[:58], "thing", "else"]) for words in known]  # a Jaccard of 56/60
        assert sum(found == f"{at:04}" for at, found in enumerate(texts.near(slight))) >= 0.98 * len(known)
        assert texts.near([" ".join(changed(rng, words, 0.2)) for words in known]).count(None) > 0.99 * len(known)
        assert texts.near([" ".join(text(rng)) for _ in range(300)]) == [None] * 300


def test_the_estimate_agrees_with_the_exact_similarity(store):
    rng = random.Random(1)
    wrong = 0
    for at in range(60):
        one = text(rng, 80)
        other = changed(rng, one, rng.choice((0, 0.01, 0.02, 0.3)))
        a, b = shingles(" ".join(one)), shingles(" ".join(other))
        exact = len(a & b) / len(a | b)
        with Neighbours(store.database, f"pair {at}") as texts:
            found = texts.add_new([("a", " ".join(one)), ("b", " ".join(other))])[1]
        wrong += (found == "a") != (exact >= 0.8) and abs(exact - 0.8) > 0.1
    assert wrong == 0


def test_each_new_text_is_added_once_in_one_call_or_in_several(store):
    one, other = "the parcel with the blue ribbon came late", "my lamp does not give any light since monday"
    with Neighbours(store.database, "texts") as texts:
        assert texts.add_new([("a", one), ("b", other), ("c", one.upper())]) == [None, None, "a"]
        assert texts.add_new([("d", other), ("e", "where is the shop")]) == ["b", None]
        assert texts.near([one, "nothing like it", ""]) == ["a", None, None]


def test_the_same_texts_give_the_same_neighbours_again(store):
    rng = random.Random(2)
    some = [(f"{at}", " ".join(changed(rng, text(random.Random(at % 20), 40), 0.03))) for at in range(200)]
    found = []
    for _ in range(2):
        with Neighbours(store.database, "texts") as texts:
            found.append(texts.add_new(some))
    assert found[0] == found[1]
    assert 20 < found[0].count(None) < 200


def test_a_full_bucket_does_not_hide_the_signature(store):
    """More texts than a bucket takes, all alike in some bands: those that are written out of sight are still known."""
    rng = random.Random(3)
    base = text(rng, 300)
    some = [(f"{at:03}", " ".join(changed(rng, base, 0.002))) for at in range(3 * MOST_IN_A_BUCKET)]
    with Neighbours(store.database, "texts") as texts:
        texts.add(some)
        assert None not in texts.near([words for _, words in some])
        assert rows(store) == 8 * len(some)


def test_sets_are_apart_and_leave_nothing(store):
    with Neighbours(store.database, "a") as a, Neighbours(store.database, "a") as b:
        a.add([(f"{at}", f"text {'x' * at} of some words") for at in range(1200)])
        assert b.near(["text x of some words"]) == [None]
    assert rows(store) == 0


def test_what_a_killed_process_left_is_taken_away_a_day_later(store, monkeypatch):
    left = Neighbours(store.database, "left")
    left.add([("a", "some text of words")])
    Neighbours(store.database, "other").close()
    assert rows(store) == 8
    later = Neighbours(store.database, "later")
    monkeypatch.setattr("bootstrap.neighbours._ABANDONED_MS", -1)
    Neighbours(store.database, "new").close()
    assert rows(store) == 0
    later.close()


@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_the_threshold_is_kept(store, threshold):
    words = ["one", "two", "six", "ten", "red", "blue", "green", "white", "black", "brown", "gold", "grey", "pink"]
    near = [*words[:-1], "violet"]
    with Neighbours(store.database, "texts", threshold=threshold) as texts:
        found = texts.add_new([("a", " ".join(words)), ("b", " ".join(near))])
    assert found == [None, "a" if threshold == 0.5 else None]  # 10 of 12 runs are the same
