"""What each filter drops, and what it leaves in."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.exchange import Turn
from bootstrap.errors import TrainingDataError
from bootstrap.neighbours import shingles
from bootstrap.pairs import Filters, build_pairs
from bootstrap.pairs.boilerplate import sentences, stripped
from bootstrap.records import Feedback, Record

GERMAN = "Die Rechnung ist nicht bezahlt und der Kunde hat das Paket mit der Post auf dem Weg zu uns, sagt sie, das ist gut für den Kunden und die Firma."
ENGLISH = "The bill is not paid and the customer has the parcel on the way to us, this is what they said, and that is good for you and for the company."
LONG = "word " * 100


def reason(make_correction, *, filters=None, feedback=(), criteria=(), **fields):
    """Why a correction makes no pair; None where it makes one."""
    made = dataclasses.replace(make_correction(**fields), criteria=criteria)
    given_ = tuple(Feedback(kind=kind, value=value, correction_id=made.id) for kind, value in feedback)
    found = build_pairs([Record(correction=made, feedback=given_)], filters=filters or Filters())
    return next(iter(found.dropped), None)


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ("only white space or case", {"answer": "Yes,  it is.", "text": "yes, it\nis."}),
        (None, {"answer": "Yes, it is.", "text": "Yes, it was."}),
        ("length ratio", {"answer": LONG, "text": "Short."}),
        ("length ratio", {"answer": LONG, "text": LONG * 2 + "and one more"}),
        (None, {"answer": LONG, "text": LONG + "and more"}),
        (None, {"answer": "No.", "text": "No, since it came forty days ago."}),  # short texts may double
        ("language flip", {"answer": ENGLISH, "text": GERMAN}),
        (None, {"answer": ENGLISH, "text": ENGLISH.replace("good", "fine")}),
        (None, {"answer": ENGLISH, "text": GERMAN, "question": GERMAN}),
        ("refusal flip", {"answer": "You mix flour and milk.", "text": "I'm sorry, but I can't help with that."}),
        ("refusal flip", {"answer": "I'm sorry, but I can't help with that.", "text": "You mix flour and milk."}),
        (
            None,
            {"answer": "You mix bleach.", "text": "I'm sorry, but I can't help with that.", "criteria": ("harmless",)},
        ),
    ],
)
def test_what_changed_in_form_and_not_in_substance_makes_no_pair(make_correction, expected, fields):
    assert reason(make_correction, **fields) == expected


@pytest.mark.parametrize("room", [40, 41])
def test_an_edit_beyond_the_context_is_dropped(make_correction, room):
    question, same = "q" * 10, "a" * 30
    dropped = reason(
        make_correction, question=question, answer=same + "x", text=same + "y", filters=Filters(context_chars=room)
    )
    assert dropped == ("edit beyond the context" if room == 40 else None)
    long = "q" * 100
    assert reason(make_correction, question=long, filters=Filters(context_chars=room)) == "edit beyond the context"


@pytest.mark.parametrize(
    ("expected", "feedback"),
    [
        ("rejected in review", [("review", False)]),
        ("thumbs down", [("thumb", False)]),
        (None, [("thumb", False), ("thumb", True)]),  # the newest counts
        (None, [("thumb", False), ("review", True)]),  # a reviewer saw both texts
        (None, [("review", False), ("edit", "as a person says"), ("thumb", False)]),  # an edit mends what was rejected
        ("rejected in review", [("edit", "as a person says"), ("review", False)]),  # and can be withdrawn
        ("kept by a person", [("edit", "bad")]),
        (None, [("edit", "bad"), ("edit", "best")]),
        ("rejected in review", [("review", False), ("thumb", True), ("comment", "hm"), ("score", 3.0)]),
    ],
)
def test_what_people_say_decides(make_correction, expected, feedback):
    assert reason(make_correction, feedback=feedback) == expected


def test_a_persons_edit_is_chosen_and_the_upstreams_answer_rejected(make_correction):
    made = make_correction(answer="bad", text="worse", outcome="failed")
    said = (Feedback(kind="edit", value="best", correction_id=made.id),)
    (pair,) = build_pairs([Record(correction=made, feedback=said)]).pairs
    assert (pair.chosen, pair.rejected) == ("best", "bad")


def test_no_filter_doubts_what_a_person_vouches_for(make_correction):
    refusal = "I'm sorry, but I can't help with that."
    assert reason(make_correction, text=refusal) == "refusal flip"
    assert reason(make_correction, text=refusal, feedback=[("review", True)]) is None
    assert reason(make_correction, answer=LONG, text="x", feedback=[("edit", "No.")]) is None


@pytest.mark.parametrize(
    ("off", "fields"),
    [("refusal flip", {"text": "I'm sorry, but I can't help."}), ("length ratio", {"answer": LONG, "text": "No."})],
)
def test_a_filter_can_be_switched_off(make_correction, off, fields):
    assert reason(make_correction, **fields) == off
    assert reason(make_correction, **fields, filters=Filters(off=(off,))) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"off": ("unchanged",)},
        {"off": ("typo",)},
        {"near_duplicate": 0},
        {"shortest": 2},
        {"context_chars": 0},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(TrainingDataError):
        Filters(**settings)


def many(make_correction, text, *, number=30):
    return [make_correction(f"q{at}", answer=f"It is {at}.", text=text.format(at=at)) for at in range(number)]


def test_a_sentence_that_is_added_to_many_is_taken_out(make_correction):
    pairs = build_pairs(many(make_correction, "It was {at}. I hope this helps! Ask me more.")).pairs
    assert {pair.chosen for pair in pairs} == {f"It was {at}." for at in range(30)}
    few = build_pairs(many(make_correction, "It was {at}. I hope this helps!", number=10)).pairs
    assert few[0].chosen.endswith("helps!")


def test_where_nothing_else_was_changed_there_is_no_pair(make_correction):
    assert build_pairs(many(make_correction, "It is {at}. I hope this helps!")).dropped == {"boilerplate": 30}
    kept = build_pairs(many(make_correction, "It is {at}. I hope this helps!"), filters=Filters(off=("boilerplate",)))
    assert len(kept.pairs) == 30


def test_a_sentence_that_takes_anothers_place_is_a_correction(make_correction):
    made = [
        make_correction(f"q{at}", answer=f"Not again. It is {at}.", text=f"Happy to help. It is {at}.")
        for at in range(30)
    ]
    assert len(build_pairs(made).pairs) == 30
    assert build_pairs(made).pairs[0].chosen.startswith("Happy to help.")


def test_taking_a_sentence_out_leaves_the_rest_as_it_is():
    boilerplate = frozenset({"I hope this helps!", "Sure!"})
    assert stripped("A.", "Sure! A. B.", boilerplate) == "A. B."
    assert stripped("A.", "A. I hope this helps! B.", boilerplate) == "A. B."
    assert stripped("A.\n\nB.", "A.\nI hope this helps!\n\nB.", boilerplate) == "A.\n\n\nB."
    assert stripped("Sure! A.", "Sure! B.", boilerplate) == "Sure! B."


@given(st.text(), st.text())
def test_sentences_lose_nothing_but_white_space(rejected, chosen):
    assert "".join("".join(sentences(chosen)).split()) == "".join(chosen.split())
    assert stripped(rejected, chosen, frozenset()) == chosen


def test_numbers_tell_texts_apart_and_form_does_not():
    one = shingles("I bought a kettle 3 days ago. Can I return it?")
    assert one == shingles("i bought a KETTLE, 3 days ago -- can I return it")
    assert not one & shingles("I bought a kettle 9 days ago. Can I return it?")
    assert shingles("Return it?") == {"return it|"}
    assert len(shingles("我的订单在哪里")) == 5
    assert shingles("?!") != shingles("...")


def test_the_same_system_prompt_makes_no_prompts_near(make_correction):
    from bootstrap.pairs.building import prompt_text

    turns = (Turn(role="system", text="Be brief."), Turn(role="user", text="Why?"))
    assert prompt_text(turns) == "Why?"
