from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner_chain.exchange import Exchange, Turn
from bootstrap.errors import NotEnoughPairsError, TrainingDataError
from bootstrap.pairs import Pair, Triple, build_pairs, manifest, read_triples, triples, write_triples

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


@settings(deadline=None)
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
        ({**GOOD, "source": "me"}, '"source" must be one of gold, verified, annotated'),
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
    for path in (tmp_path, tmp_path / "nowhere.jsonl"):
        with pytest.raises(TrainingDataError, match="cannot be read"):
            read_triples(path)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingDataError, match="cannot be read"):
        read_triples(binary)
