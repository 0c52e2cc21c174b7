"""The measures of benchmarks/real on invented data, worked out by hand, and its tables as the docs show them."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from aligner_chain import Correction, Exchange, Turn
from aligner_chain.templates import chat_prompt, encode
from bootstrap.demo.models import new_model
from bootstrap.pairs import Triple
from bootstrap.records import split_of

ROOT = Path(__file__).parents[2]
FOLDERS = [str(ROOT / "benchmarks" / name) for name in ("real", "harm", "tables", "")]
NAMES = (
    "made",
    "rude",
    "politeness",
    "programs",
    "tables",
    "real",
    "report",
    "endings",
    "before_after",
    "speaker",
    "loop",
)


@pytest.fixture(scope="module")
def measures() -> Iterator[SimpleNamespace]:
    """Its modules by name, as a run of the folder finds them; nothing of them stays importable."""
    sys.path[:0] = FOLDERS
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in NAMES}
    yield SimpleNamespace(**modules)
    for name in (*NAMES, "side_by_side", "cells", "stored"):
        sys.modules.pop(name, None)
    for folder in FOLDERS:
        sys.path.remove(folder)


@pytest.mark.parametrize(
    ("one", "other", "f1"),
    [
        ("The cat sat.", "the cat slept here", 4 / 7),
        ("so so bad", "so, so it is", 2 * 2 / 7),
        ("Don't!", "don't", 1.0),
        ("cat", "dog", 0.0),
        ("", "!", 1.0),
        ("", "word", 0.0),
    ],
    ids=["half", "as often as in both", "apostrophe", "nothing", "both empty", "one empty"],
)
def test_word_f1_counts_a_word_as_often_as_both_have_it(
    measures: SimpleNamespace, one: str, other: str, f1: float
) -> None:
    assert measures.rude.word_f1(one, other) == pytest.approx(f1)
    assert measures.rude.word_f1(other, one) == pytest.approx(f1)


def test_the_best_rewrite_counts(measures: SimpleNamespace) -> None:
    assert measures.rude.closeness("a b", ["c", "a c", "d"]) == pytest.approx(0.5)


def test_a_rude_word_is_removed_in_85_of_100_and_seen_ten_times(measures: SimpleNamespace) -> None:
    pairs = [("you blorp snib", "You."), *[(f"you blorp snib {at}", "you are") for at in range(7)]]
    pairs += [("you blorp snib", "you SNIB"), ("you blorp snib", "you blorp, snib"), ("rare you", "you")]
    known: dict[str, list[str]] = {}
    for sentence, rewrite in pairs:
        known.setdefault(sentence, []).append(rewrite)
    # Of ten pairs people removed blorp in nine and snib in eight; rare was removed always, but seen once.
    assert measures.rude.lexicon(known) == {"blorp"}
    assert measures.rude.lexicon(known, share=0.8) == {"blorp", "snib"}
    assert "rare" in measures.rude.lexicon(known, least=1)


def test_deletion_takes_the_words_of_the_lexicon_and_nothing_else(measures: SimpleNamespace) -> None:
    assert measures.rude.deleted("oh BLORP, you blorpy  one", frozenset({"blorp"})) == "oh you blorpy one"
    assert measures.rude.deleted("left  as it is", frozenset({"blorp"})) == "left  as it is"


@pytest.mark.parametrize(
    ("rewrite", "found"),
    [
        ("The cat went home.", "the cat ran home"),
        ("The silly cat ran home", "the silly cat ran home"),
        ("the blorp cat ran away", "the blorp cat ran home"),
    ],
    ids=["deleted", "replaced", "left"],
)
def test_a_target_has_the_changes_that_touch_a_rude_word_alone(
    measures: SimpleNamespace, rewrite: str, found: str
) -> None:
    assert measures.rude.minimal("the blorp cat ran home", rewrite, frozenset({"blorp"})) == found


def test_a_target_is_polite_and_of_several_the_nearest_to_all(measures: SimpleNamespace) -> None:
    lexicon = frozenset({"blorp"})
    rewrites = ["the cat ran", "the cat ran", "the silly cat ran", "the blorp cat left"]
    assert measures.rude.target("the blorp cat ran", rewrites, lexicon) == "the cat ran"
    assert measures.rude.target("the blorp cat ran", ["the blorp cat left"], lexicon) is None
    # Where no word is rude all changes are taken, if there are few.
    assert measures.rude.target("go to hades my cat", ["go away my cat"], lexicon) == "go away my cat"
    assert measures.rude.target("go to hades my cat", ["please leave"], lexicon) is None


def test_a_careful_target_takes_no_other_word(measures: SimpleNamespace) -> None:
    lexicon = frozenset({"blorp", "snib"})

    def target(*rewrites: str) -> str | None:
        return measures.rude.careful_target("you blorp cat, go snib home", rewrites, lexicon)

    assert target("be gone", "you silly cat, go home") == "you silly cat, go home"
    # Where everybody took more, their rude words alone are taken.
    assert target("you dog, go home") == "you cat, go home"
    assert target("you dog, go snib home") is None
    assert measures.rude.careful_target("go home", ["go away"], lexicon) is None


@pytest.fixture
def edits(measures: SimpleNamespace) -> Any:
    fixes = [
        ("you blorp cat", "you cat"),
        ("a blorp", "a"),
        ("the snib ran", "the dog ran"),
        ("oh my snib", "oh my dog"),
    ]
    return measures.made.edits(fixes, ["You and I", "the dog sat", "a blorp sat"], frozenset({"blorp", "snib"}))


def test_edits_are_what_people_removed_and_replaced(edits: Any) -> None:
    assert (edits.removed, edits.kinds) == (["blorp", "blorp"], ["blorp"])
    assert edits.beside == {"you": ["blorp"], "cat": ["blorp"], "a": ["blorp"]}
    assert edits.replaced == {"dog": ["snib", "snib"]}
    assert edits.neutral == ["You and I", "the dog sat"]
    assert edits.words == ["you", "and", "i", "the", "dog", "sat"]


def test_a_made_sentence_becomes_the_neutral_one_without_its_rude_words(measures: SimpleNamespace, edits: Any) -> None:
    dice = random.Random(0)
    for _ in range(300):
        sentence, correction = measures.made.pair(edits, dice)
        assert set(correction.split()) <= set(edits.words)
        without = [word for word in sentence.replace("snib", "dog").split() if word != "blorp"]
        assert sentence != correction == " ".join(without)


def test_other_words_stand_where_a_person_changed_nothing(measures: SimpleNamespace, edits: Any) -> None:
    fix = ("the old snib ran and blorp sat there", "the old dog ran and sat there")
    made = {measures.made.varied(edits, fix, random.Random(seed)) for seed in range(50)}
    assert fix in made
    assert len(made) > 10
    for sentence, correction in made:
        assert [(at, word) for at, word in enumerate(sentence.split()) if word in ("snib", "blorp")] == [
            (2, "snib"),
            (5, "blorp"),
        ]
        kept = [word for word in sentence.split() if word not in ("snib", "blorp")]
        assert correction.split() == [*kept[:2], "dog", *kept[2:]]


def test_made_rows_are_the_same_for_the_same_seed_and_of_three_kinds(measures: SimpleNamespace, edits: Any) -> None:
    rows, again = (measures.made.triples(edits, "Kind?", 500, random.Random(7)) for _ in range(2))
    assert rows == again
    keeps = [one.answer for one in rows if one.correction is None]
    assert 0.27 < len(keeps) / len(rows) < 0.37
    assert not any("blorp" in text or "snib" in text for text in keeps)


def test_what_is_trained_on_is_every_sentence_once_and_every_neutral_one(measures: SimpleNamespace) -> None:
    known = {f"a blorp cat {at}": [f"A cat {at}", f"A kind cat {at}"] for at in range(40)}
    made = measures.rude.triples(known, "Kind?", 1)
    fixes = {one.answer: one.correction for one in made if one.correction is not None}
    keeps = [one.answer for one in made if one.correction is None]
    assert fixes["a blorp cat 7"] in ("a cat 7", "a kind cat 7")
    assert len(fixes) == 40
    assert {one.lower() for one in keeps} == {text.lower() for rewrites in known.values() for text in rewrites}
    assert 0.2 < sum(one.startswith("A") for one in keeps) / len(keeps) < 0.6


def test_a_word_is_lost_if_every_person_kept_it(measures: SimpleNamespace) -> None:
    rewrites = ["A b d", "a, b c"]
    assert measures.rude.lost("a b c blorp", "b new", rewrites) == {"a"}
    assert measures.rude.lost("a b c blorp", "B A", rewrites) == set()


def test_a_corrector_is_measured_on_rude_and_neutral_sentences(measures: SimpleNamespace) -> None:
    known = {"you blorp": ["You"], "a blorp b": ["a b", "a nice b"], "bad c": ["C", "good c"]}
    says = {"you blorp": "you", "a blorp b": "a blorp b", "bad c": "good c", "c": "d"}
    served = {text: says.get(text, text) for text in measures.politeness.asked(known)}
    found = measures.politeness.row(served, known, frozenset({"blorp"}))
    assert (found["rude_left"]["k"], found["rude_left"]["n"]) == (1, 3)
    assert found["f1"]["mean"] == pytest.approx((1 + 4 / 5 + 1) / 3)
    # Deleting gives "you", "a b" and "bad c", whose best F1 are 1, 1 and 2/3.
    assert found["f1_above_deletion"]["mean"] == pytest.approx((0 - 1 / 5 + 1 / 3) / 3)
    assert (found["changed"]["k"], found["as_a_person"]["k"]) == (2, 1)
    assert (found["lost"]["k"], found["f1_above_deletion_if_none_lost"]["n"]) == (0, 3)
    # Neutral are You, a b, a nice b, C and good c; C is changed where it has no capital.
    assert (found["neutral_kept"]["k"], found["neutral_kept"]["n"]) == (5, 5)
    assert (found["neutral_small_kept"]["k"], found["neutral_small_kept"]["n"]) == (4, 5)
    assert found["first_200"]["rude_left"]["n"] == 3


def test_people_are_measured_against_each_other(measures: SimpleNamespace) -> None:
    known = {"x": ["a b", "a c", "blorp"], "y": ["alone blorp"]}
    people = measures.politeness.baselines(known, frozenset({"blorp"}))["people"]
    assert (people["rude_left"]["k"], people["rude_left"]["n"]) == (2, 4)
    # Nobody can be held against "alone blorp"; of the others the nearest are 1/2, 1/2 and 0 alike.
    assert people["f1"]["n"] == 3
    assert people["f1"]["mean"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("code", "does"),
    [("x = 1", True), ("x = ", False), ("", True), ("x = 1\0", False), ("s = '\\d'", True), ("  x = 1", False)],
    ids=["whole", "cut", "empty", "null", "odd escape", "indented"],
)
def test_code_parses_or_not(measures: SimpleNamespace, code: str, does: bool) -> None:
    assert measures.programs.parses(code) is does


def test_a_program_stops_parsing_only_if_it_did_before(measures: SimpleNamespace) -> None:
    rows = [
        {"id": "1", "question": "one", "answer": "x = 2", "correction": "x = 1"},
        {"id": "2", "question": "two", "answer": "y = ", "correction": "y = 1"},
    ]
    known = measures.programs.debugbench(rows)
    pairs: list[tuple[Exchange, str]] = list(zip(known.right, ["x = 1", "y ="], strict=True))
    pairs += zip(known.wrong, ["x = 1", "y = 2)"], strict=True)
    found = measures.programs.row(known, pairs)
    counts = {name: (one["k"], one["n"]) for name, one in found.items()}
    assert counts == {
        "right_kept": (1, 2),
        "wrong_changed": (2, 2),
        "wrong_fixed": (1, 2),
        "right_stops_parsing": (1, 2),
        "wrong_stops_parsing": (0, 1),
    }


def test_a_sentence_is_cut_behind_four_words_or_before_its_first_change(measures: SimpleNamespace) -> None:
    def row(answer: str, correction: str | None) -> Triple:
        return Triple(turns=(Turn(role="user", text=""),), answer=answer, correction=correction)

    rows = [
        row("a b c d e blorp", "a b c d e"),
        row("a b blorp d e f", "a b d e f"),
        row("blorp b c d e", "b c d e"),
        row("a b c d blorp", "a b c d"),
        row("A b  c d e", None),
        row("a b c d", None),
    ]
    found = [(one.turns[-1].text, one.answer, one.correction) for one in measures.endings.ended(rows)]
    assert found == [("a b c d", "e blorp", "e"), ("a b", "blorp d e f", "d e f"), ("A b c d", "e", None)]


def test_a_beginning_has_no_rude_word_and_an_ending(measures: SimpleNamespace) -> None:
    sentences = ["a b c d e blorp", "a b c d f", "a blorp c d e", "a b c d", "k l m n o"]
    found = measures.endings.beginnings(sentences, frozenset({"blorp"}))
    assert found == {"a b c d": "a b c d e blorp", "k l m n": "k l m n o"}


def test_no_beginning_of_the_loop_is_one_that_its_upstream_was_trained_on(measures: SimpleNamespace) -> None:
    known = {f"so{at} it is a blorp{end}": ["it is"] for at in range(3000) for end in ("", " again")}
    found = measures.loop.parts(known, frozenset({"blorp"}), 1)
    upstream = {measures.endings.cut(text)[0] for text in found.upstream}
    assert len(found.live) == len(set(found.live)) == measures.loop.ROUNDS * measures.loop.LIVE
    assert not upstream & {*found.live, *found.gate}
    assert {split_of(measures.endings.asked(one)) for one in found.live} == {"train"}
    assert {split_of(measures.endings.asked(one)) for one in found.gate} == {"gate"}
    # Nothing of a beginning is left over: what is asked in neither is taught, with both of its sentences.
    assert len(found.upstream) == 2 * (3000 - len(found.live) - len(found.gate))


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("you cat", (True, True, True)),
        ("you Blorp!", (False, True, True)),
        ("!", (True, False, True)),
        ("I cannot cat you", (True, False, True)),
        ("you catt", (True, True, False)),
        ("", (True, False, True)),
    ],
    ids=["right", "rude", "no word", "refusal", "unknown word", "empty"],
)
def test_the_judge_of_the_loop(measures: SimpleNamespace, answer: str, verdict: tuple[bool, ...]) -> None:
    judge = measures.endings.judge(frozenset({"blorp"}), frozenset({"you", "cat", "blorp", "i", "cannot"}))
    [found] = judge([Exchange(turns=(), answer=answer)])
    assert tuple(found.values()) == verdict


@pytest.mark.parametrize(
    ("text", "fit"),
    [("you are a cat", True), ("you are a good cat", True), ("you are a", False), ("you snib are a cat", False)],
    ids=["deleted", "replaced", "lost a word", "still rude"],
)
def test_the_verifier_of_the_loop_wants_it_polite_and_whole(measures: SimpleNamespace, text: str, fit: bool) -> None:
    asked = Exchange(turns=(), answer="you snib are a cat")
    correction = Correction(exchange=asked, text=text, outcome="corrected")
    assert measures.endings.Verifier(frozenset({"snib"}))([correction]) == [fit]


def test_endings_are_measured_against_the_start_without_its_rude_words(measures: SimpleNamespace) -> None:
    ruler = measures.endings.Ruler(
        beginnings=["so it", "and he"],
        rewrites=[["So it was a day"], ["and he left", "and he did go"]],
        start=["was blorp a day", "left blorp"],
        lexicon=frozenset({"blorp"}),
        known=frozenset({"was", "a", "day", "left", "blorp"}),
    )
    said = measures.endings.Said(["was a blorp day", "gone"], ["was a day", "gone"])
    found = ruler.corrected(said)
    assert (found["rude"]["k"], found["changed"]["k"], found["lost"]["k"]) == (0, 1, 0)
    assert found["rude_against_start"]["change"] == -1
    assert found["content"]["mean"] == pytest.approx((1 + 0) / 2)
    # Of the whole "and he gone" two of three words are those of "and he left".
    assert found["people"]["mean"] == pytest.approx((1 + 2 * 2 / 6) / 2)
    assert (found["unknown_words"]["k"], found["short"]["k"]) == (1, 1)
    assert found["length"]["ratio"] == pytest.approx(4 / 6)
    assert found["distinct"] == 1
    alone = ruler.row(measures.endings.Said(said.answers, said.answers))
    assert alone["rude"]["k"] == 1
    assert "changed" not in alone


def test_how_likely_an_ending_is_to_an_upstream_is_what_the_model_itself_says(
    measures: SimpleNamespace, tmp_path: Path
) -> None:
    import torch

    tokenizer = measures.speaker.tokenizer_of(["so it was a day", "and he left again"])
    model = new_model(tokenizer, seed=1, hidden=16, layers=1, window=64)
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path)
    said = {"so it": "was a day", "and he": "left"}
    found = measures.before_after.likelihood(
        tmp_path, [Exchange(turns=measures.endings.asked(one), answer=answer) for one, answer in said.items()]
    )
    for likely, (beginning, ending) in zip(found, said.items(), strict=True):
        prompt = chat_prompt(tokenizer, measures.endings.asked(beginning))
        ids = torch.tensor([[*prompt, *encode(tokenizer, ending)]])
        scores = model.eval()(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        each = scores.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :]
        assert likely == pytest.approx(each.mean().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["real_paradetox", "real_loop", "real_debugbench", "harm_gsm8k"])
def test_the_docs_show_the_stored_figures(measures: SimpleNamespace, name: str) -> None:
    lines = measures.tables.TABLES[name](measures.tables.read(name))
    page = (ROOT / "docs" / "real_data.md").read_text(encoding="utf-8")
    assert len(lines) > 3
    assert "\n".join(lines) in page
