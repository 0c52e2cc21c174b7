from __future__ import annotations

import dataclasses
import itertools
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.exchange import Exchange, Turn
from bootstrap.errors import NotEnoughPairsError, TrainingDataError
from bootstrap.judges import Annotation
from bootstrap.pairs import (
    Filters,
    Pair,
    Triple,
    build_pairs,
    collect_pairs,
    human_triples,
    manifest,
    read_triples,
    triples,
    write_triples,
)
from bootstrap.records import Feedback, Record, split_of

GOOD = {"question": "q", "answer": "a", "correction": "c"}

text = st.text()
filled = text.filter(str.strip)
rows = st.builds(
    Triple,
    turns=st.lists(st.builds(Turn, role=text, text=text), min_size=1, max_size=3).map(tuple),
    answer=filled,
    correction=st.none() | filled,
    context=st.lists(text, max_size=2).map(tuple),
    criteria=st.lists(text, max_size=2).map(tuple),
    source=st.sampled_from(["gold", "verified", "annotated"]),
).filter(lambda row: row.correction != row.answer)


@pytest.fixture
def data(tmp_path):
    """A file of training data with these lines; what is no text becomes JSON."""

    def write(*lines):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
        return path

    return write


def test_a_pair_prefers_the_correction(make_correction):
    correction = make_correction("Why?", answer="bad", text="good", upstream="up@2")
    (pair,) = build_pairs([correction]).pairs
    turns = (Turn(role="user", text="Why?"),)
    assert pair == Pair(turns=turns, chosen="good", rejected="bad", correction_id=correction.id, upstream="up@2")


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("unchanged", {"text": "bad"}),
        ("unchanged", {"text": "bad", "outcome": "kept"}),
        ("unchanged", {"text": "bad", "outcome": "skipped"}),
        ("failed", {"outcome": "failed"}),
        ("failed", {"text": "bad", "outcome": "failed"}),
        ("empty", {"text": " \n"}),
        ("empty", {"answer": ""}),
        ("empty", {"turns": ()}),
        ("not unicode", {"text": "good \ud800"}),
        ("not unicode", {"turns": (Turn(role="user", text="\udfff"),)}),
        ("with passages", {"context": ("It is so.",)}),
        ("duplicate", {}),
    ],
)
def test_what_makes_no_pair_is_left_out_and_counted(make_correction, reason, fields):
    found = build_pairs([make_correction(), make_correction(**fields)])
    assert found.dropped == {reason: 1}
    assert len(found.pairs) == 1


@pytest.mark.parametrize("other", [{"question": "Another?"}, {"answer": "worse"}, {"text": "better"}])
def test_pairs_that_differ_in_anything_are_no_duplicates(make_correction, other):
    found = build_pairs([make_correction(), make_correction(**other)])
    assert (len(found.pairs), found.dropped) == (2, {})


def test_too_few_pairs_are_an_error_that_counts(make_correction):
    corrections = [make_correction("a"), make_correction("b"), make_correction("b"), make_correction("c", text="bad")]
    assert len(build_pairs(corrections, minimum=2).pairs) == 2
    with pytest.raises(NotEnoughPairsError) as caught:
        build_pairs(corrections, minimum=3)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.found, error.needed, error.dropped) == (2, 3, {"duplicate": 1, "unchanged": 1})
    assert "2 preference pairs were found and a round needs 3" in str(error)
    assert "1 duplicate, 1 unchanged" in str(error)
    assert "aligner-bootstrap demo" in str(error)


def test_triples_keep_what_was_approved_and_fix_what_was_corrected(make_correction):
    right = make_correction("a", answer="fine", text="fine", context=("passage",))
    wrong = dataclasses.replace(make_correction("b"), criteria=("courteous",))
    found = triples([right, wrong], source="verified")
    assert found.dropped == {}
    assert found.triples == (
        Triple(turns=right.exchange.turns, answer="fine", correction=None, context=("passage",), source="verified"),
        Triple(turns=wrong.exchange.turns, answer="bad", correction="good", criteria=("courteous",), source="verified"),
    )


def test_triples_have_no_thoughts_in_them_and_pairs_have_those_of_both_sides(make_correction):
    thinking = make_correction(answer="<think>bad?</think>\n\nbad", text="<think>bad?</think>\n\ngood")
    [triple] = triples([thinking], source="verified").triples
    assert (triple.answer, triple.correction) == ("bad", "good")
    annotated = Annotation(text=thinking.text).triple(thinking.exchange, "annotated")
    assert (annotated.answer, annotated.correction) == ("bad", "good")
    [pair] = build_pairs([thinking], minimum=1).pairs
    assert (pair.rejected, pair.chosen) == (thinking.exchange.answer, thinking.text)


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("kept", {"text": "bad", "outcome": "kept"}),
        ("skipped", {"text": "bad", "outcome": "skipped"}),
        ("failed", {"text": "bad", "outcome": "failed"}),
        ("empty", {"answer": "", "text": ""}),
        ("not unicode", {"context": ("\ud800",)}),
        ("duplicate", {}),
    ],
)
def test_what_makes_no_triple_is_left_out_and_counted(make_correction, reason, fields):
    found = triples([make_correction(), make_correction(**fields)], source="annotated")
    assert found.dropped == {reason: 1}
    assert len(found.triples) == 1


def test_a_triple_gives_the_exchange_that_an_aligner_is_shown():
    row = Triple(turns=(Turn(role="user", text="q"),), answer="a", correction=None, context=("p",))
    assert row.exchange == Exchange.of("q", "a", context=("p",))


def test_a_manifest_is_the_hash_of_canonical_rows(make_correction):
    pairs = [Pair(turns=(Turn(role="user", text="q"),), chosen="c", rejected="r", correction_id="1")]
    # printf '...\n' | sha256sum, of the row with sorted keys and no white space
    assert manifest(pairs, {"empty": 2}) == {
        "rows": 1,
        "sha256": "1d3a806b7cf0ab98387376b1424a69a8f07c2c91bee8edb0e2271515d7bb1d38",
        "dropped": {"empty": 2},
    }
    found = build_pairs(make_correction(f"question {number}") for number in range(5)).pairs
    digests = {manifest(some)["sha256"] for some in (found, found[:4], found[::-1], [])}
    assert len(digests) == 4
    assert manifest(found) == manifest(list(found))


@given(st.lists(rows, min_size=1, max_size=5))
def test_triples_come_back_equal_from_a_file(tmp_path_factory, batch):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    write_triples(path, batch)
    assert read_triples(path) == batch


def test_a_hand_written_file_is_read(data):
    path = data(
        "\ufeff" + json.dumps(GOOD),
        "",
        {**GOOD, "correction": "a", "id": 7, "group": "other keys are left alone"},
        {
            "turns": [{"role": "system", "text": "Be brief."}, {"role": "user", "text": "q"}],
            "answer": "a",
            "correction": "c",
            "context": ["p"],
            "criteria": ["courteous"],
        },
    )
    question = Turn(role="user", text="q")
    assert read_triples(path) == [
        Triple(turns=(question,), answer="a", correction="c"),
        Triple(turns=(question,), answer="a", correction=None),
        Triple(
            turns=(Turn(role="system", text="Be brief."), question),
            answer="a",
            correction="c",
            context=("p",),
            criteria=("courteous",),
        ),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'question': 1}", "it is no JSON"),
        ('{"question": "q", "answer": "a"', "it is no JSON"),
        ("[" * 100_000, "data.jsonl, line 2"),
        ([1], "it is no object but list"),
        ({"answer": "a", "correction": "c"}, 'it must have either "question" or "turns"'),
        ({**GOOD, "turns": [{"role": "user", "text": "q"}]}, 'it must have either "question" or "turns"'),
        ({"question": "q", "correction": "c"}, '"answer" is missing'),
        ({"question": "q", "answer": "a"}, '"correction" is missing'),
        ({**GOOD, "question": "\n"}, '"question" is empty'),
        ({**GOOD, "answer": ""}, '"answer" is empty'),
        ({**GOOD, "correction": " "}, '"correction" is empty'),
        ({**GOOD, "correction": None}, '"correction" must be text, not None'),
        ({**GOOD, "answer": "\ud800"}, '"answer" holds a lone surrogate'),
        ({**GOOD, "context": "p"}, '"context" must be a list of strings'),
        ({**GOOD, "criteria": [1]}, '"criteria" must be text, not 1'),
        ({**GOOD, "source": "me"}, '"source" must be one of gold, human, verified, annotated'),
        ({"turns": [], "answer": "a", "correction": "c"}, '"turns" must be a list of objects'),
        ({"turns": ["q"], "answer": "a", "correction": "c"}, '"turns" must be a list of objects'),
        ({"turns": [{"role": "user"}], "answer": "a", "correction": "c"}, '"text" is missing'),
    ],
)
def test_a_bad_line_is_named_with_what_is_expected(data, line, problem):
    path = data(GOOD, line, GOOD)
    with pytest.raises(TrainingDataError) as caught:
        read_triples(path)
    message = str(caught.value)
    assert f"{path}, line 2: " in message
    assert problem in message
    assert '{"question": "...", "answer": "...", "correction": "..."' in message


def test_a_file_without_rows_or_that_is_none_is_an_error(data, tmp_path):
    with pytest.raises(TrainingDataError, match="holds no rows"):
        read_triples(data("", " "))
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "nowhere.jsonl", "There is no file")):
        with pytest.raises(TrainingDataError, match=told):
            read_triples(path)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingDataError, match="is not UTF-8 text"):
        read_triples(binary)


def split_prompts(split, number, template="the parcel with the {} ribbon from {} came late again today"):
    """Prompts of one split, made of letters only: their numbers tell no two apart."""
    letters = itertools.product("abcdefghij", repeat=4)
    prompts = (template.format("".join(some), "".join(reversed(some))) for some in letters)
    return list(itertools.islice((one for one in prompts if split_of((Turn(role="user", text=one),)) == split), number))


def test_the_pairs_of_a_store_are_of_the_training_split(store, make_correction):
    prompts = [
        f"{word}?" for word in ("alpha", "beta", "gamma", "delta", "rho", "tau", "phi", "chi", "psi", "nu", "pi")
    ]
    made = [make_correction(prompt, answer=f"{prompt} bad", text=f"{prompt} good") for prompt in prompts]
    store.append(made)
    held_out = {one.id for one in made if split_of(one.exchange.turns) != "train"}
    assert held_out
    found = collect_pairs(store)
    assert {pair.correction_id for pair in found.pairs} == {one.id for one in made} - held_out
    assert found.pairs == build_pairs(store.records("train")).pairs


@pytest.mark.parametrize("held_out", ["gate", "report"])
def test_what_gives_a_held_out_prompt_away_makes_no_pair(store, make_correction, held_out):
    prompt = split_prompts(held_out, 1)[0]
    variants = [f"{prompt} {word}" for word in ("please", "now", "soon", "friend", "sir", "madam", "thanks")]
    near = next(one for one in variants if split_of((Turn(role="user", text=one),)) == "train")
    far = split_prompts("train", 1, "is a {} shirt {} warm in winter")[0]
    store.append(make_correction(one, answer=f"bad {one}", text=f"good {one}") for one in (prompt, near, far))
    found = collect_pairs(store)
    assert [pair.turns[0].text for pair in found.pairs] == [far]
    assert found.dropped == {"near a held-out prompt": 1}
    assert len(collect_pairs(store, filters=Filters(off=("near a held-out prompt",))).pairs) == 2


def test_of_near_duplicates_the_first_is_taken(store, make_correction):
    prompt = split_prompts("train", 1)[0]
    long = "the answer says that one two three four five six seven red blue green yellow white black brown things"
    store.append(
        make_correction(prompt, answer=f"{long} {end}", text=f"indeed {long} {end}")
        for end in ("now", "later", "now 5")
    )
    found = collect_pairs(store)
    assert [pair.rejected[-5:] for pair in found.pairs] == ["s now", "now 5"]
    assert found.dropped == {"near-duplicate": 1}


def test_other_numbers_make_another_question(store, make_correction):
    template = "I have had this kettle with the red handle and the long cord for {} days and I want to return it today"
    made = [make_correction(template.format(days), text=f"good {days}") for days in range(100)]
    store.append(made)
    train = [one for one in made if split_of(one.exchange.turns) == "train"]
    assert 50 < len(train) < 100
    assert len(collect_pairs(store).pairs) == len(train)


def test_a_store_with_too_few_pairs_is_an_error(store, make_correction):
    store.append([make_correction()])
    with pytest.raises(NotEnoughPairsError):
        collect_pairs(store, minimum=2)


def test_duplicates_are_found_among_very_many_rows():
    from bootstrap.pairs.building import _Seen

    seen = _Seen()
    pairs = [Pair(turns=(), chosen="c", rejected=str(number), correction_id="") for number in range(150_000)]
    assert not any(map(seen.add, pairs))
    assert all(map(seen.add, pairs[::100]))


def spoken(correction, *said):
    feedback = (Feedback(kind=kind, value=value, correction_id=correction.id) for kind, value in said)
    return Record(correction=correction, feedback=tuple(feedback))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([("edit", "best")], "best"),
        ([("edit", "bad")], None),  # the answer was right
        ([("review", True)], "good"),
        ([("thumb", True)], "good"),
        ([("review", False)], "rejected in review"),
        ([("thumb", False)], "thumbs down"),
        ([("comment", "hm")], "nobody vouches for it"),
        ([], "nobody vouches for it"),
    ],
)
def test_only_what_somebody_vouches_for_makes_a_triple(make_correction, said, expected):
    found = human_triples([spoken(dataclasses.replace(make_correction(), criteria=("kind",)), *said)])
    if found.triples:
        (row,) = found.triples
        assert (row.answer, row.correction, row.source) == ("bad", expected, "human")
        assert row.criteria == (("kind",) if expected == "good" else ())
    else:
        assert found.dropped == {expected: 1}


def test_triples_by_people_are_fit_to_train_on(make_correction):
    records = [
        spoken(make_correction("a"), ("edit", "\ud800")),
        spoken(make_correction("b", answer=""), ("review", True)),
        *(spoken(make_correction("c"), ("review", True)) for _ in range(2)),
    ]
    assert human_triples(records).dropped == {"not unicode": 1, "empty": 1, "duplicate": 1}


def test_twenty_bad_lines_are_named_and_all_are_counted(data):
    with pytest.raises(TrainingDataError) as caught:
        read_triples(data(GOOD, *["[]"] * 30, GOOD))
    message = str(caught.value)
    assert "line 2: " in message
    assert "line 21: " in message
    assert "line 22: " not in message
    assert "and 10 more: 30 of 32 lines are bad" in message
