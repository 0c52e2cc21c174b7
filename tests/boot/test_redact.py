from __future__ import annotations

import pickle
import random
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import run_examples
from personal_data import HARD, sentences
from vocabularies import LOSSLESS, VOCABULARIES

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Edit, Exchange, Finding, TokenScore, Turn, edits_between
from bootstrap.demo import world
from bootstrap.records import Feedback
from bootstrap.redact import BUILT_IN, Redactor, Span, presidio_detector

REDACT = Redactor()
PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"


def corrected(answer: str, text: str, *, question: str = "Why?", **more: Any) -> Correction:
    exchange = Exchange.of(question, answer, context=more.pop("context", ()))
    return Correction(exchange=exchange, text=text, outcome="corrected", edits=edits_between(answer, text), **more)


def texts_of(correction: Correction) -> list[str]:
    exchange = correction.exchange
    turns = [turn.text for turn in exchange.turns]
    return [*turns, *exchange.context, exchange.answer, correction.text, correction.reason]


def one(text: str, redact: Redactor = REDACT) -> str:
    return redact(corrected(text, text)).text


# --- the written corpus -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "wrong", "missed"), [("seen", 0, 0), ("unseen", 1, 2)])
def test_the_rules_find_what_is_marked_and_little_else(part, wrong, missed):
    found, meant = set(), set()
    for sentence in sentences():
        if sentence.part == part:
            found |= {(sentence.text, span.kind, span.start, span.end) for span in REDACT.find(sentence.text)}
            meant |= {(sentence.text, *mark) for mark in sentence.marks}
    assert len(meant) > 40
    assert len(found - meant) <= wrong, found - meant
    assert len(meant - found) <= missed, meant - found


def test_every_rule_finds_something_in_the_corpus():
    texts = [sentence.text for sentence in sentences()]
    texts.append("-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAKj34GkxFhD9\n-----END RSA PRIVATE KEY-----")
    for pattern in BUILT_IN:
        assert any(list(pattern.find(text)) for text in texts), pattern


def test_texts_of_the_support_desk_stay():
    rng = random.Random(7)
    for _ in range(500):
        ticket = world.draw_ticket(rng)
        exchange = ticket.exchange(world.right_answer(rng, ticket))
        assert not REDACT.find(exchange.question + "\n" + exchange.answer)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("-----BEGIN PRIVATE KEY-----\nMIIBVQ\nab==\n-----END PRIVATE KEY-----\nbye", "<KEY_1>\nbye"),
        ("-----BEGIN PRIVATE KEY-----\nMIIBVQIBADANBgkqhkiG9w0BAQEFAASCAT\ncut off", "<KEY_1>\ncut off"),
        ("```\npassword='a b9 c'\n```", "```\npassword='<PASSWORD_1>'\n```"),
        ("postgresql://joe:p!w@db.example.com/x", "postgresql://<PASSWORD_1>@db.example.com/x"),
        ("IBAN DE89370400440532013000 BIC COBADEFFXXX", "IBAN <IBAN_1> BIC COBADEFFXXX"),
        ("(Tel. 030 1234567)", "(Tel. <PHONE_1>)"),
        ("http://203.0.113.5:8080/x", "http://<IP_1>:8080/x"),
        ("[2001:db8::17]:443", "[<IP_1>]:443"),
        ("anna@example.org.", "<EMAIL_1>."),
    ],
)
def test_what_is_replaced_ends_where_the_value_ends(text, clean):
    assert one(text) == clean


# --- one map for all texts ----------------------------------------------------------------------------------------


def test_a_value_has_one_placeholder_everywhere_numbered_in_reading_order():
    correction = Correction(
        exchange=Exchange(
            turns=(
                Turn(role="system", text="Write to help@shop.example."),
                Turn(role="user", text="I am anna@x.example"),
            ),
            answer="So you are Anna@X.example? Or bob@x.example?",
            context=("Bob: bob@x.example",),
        ),
        text="So you are anna@x.example? See help@shop.example.",
        outcome="corrected",
        reason="anna@x.example was right",
    )
    clean = REDACT(correction)
    assert [turn.text for turn in clean.exchange.turns] == ["Write to <EMAIL_1>.", "I am <EMAIL_2>"]
    assert clean.exchange.context == ("Bob: <EMAIL_3>",)
    assert clean.exchange.answer == "So you are <EMAIL_2>? Or <EMAIL_3>?"
    assert clean.text == "So you are <EMAIL_2>? See <EMAIL_1>."
    assert clean.reason == "<EMAIL_2> was right"
    assert clean.edits == edits_between(clean.exchange.answer, clean.text)


@pytest.mark.parametrize(
    "forms",
    [
        ("+49 (0)30 1234567", "0049 30 1234567", "+49-30-1234567"),
        ("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"),
        ("DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
        ("2001:db8:0:0::1", "2001:DB8::1"),
        ("Anna@Example.org", "anna@example.org"),
    ],
)
def test_however_a_value_is_written_it_is_the_same(forms):
    clean = REDACT(corrected(forms[0], forms[-1], context=forms))
    assert len({clean.text, clean.exchange.answer, *clean.exchange.context}) == 1
    assert clean.edits == ()


def test_different_values_stay_different():
    clean = REDACT(corrected("Write to anna@x.example.", "Write to bob@x.example."))
    assert clean.edits == (Edit(start=10, end=17, before="EMAIL_1", after="EMAIL_2"),)


def test_a_value_found_by_its_context_is_replaced_where_it_has_none():
    clean = REDACT(corrected("My password is Tr0ub4dor, right?", "Tr0ub4dor is right, xTr0ub4dor is not."))
    assert clean.exchange.answer == "My password is <PASSWORD_1>, right?"
    assert clean.text == "<PASSWORD_1> is right, xTr0ub4dor is not."


def test_many_values_are_found_as_few_are():
    many = " ".join(f"password=word{number}" for number in range(50))
    clean = REDACT(corrected(many, "word7 and word49 and word77 and aword7"))
    assert clean.text == "<PASSWORD_8> and <PASSWORD_50> and word77 and aword7"


def test_a_placeholder_that_stands_there_already_is_not_given_again():
    text = "<EMAIL_1> wrote to anna@x.example, password=<PASSWORD_1>"
    assert one(text) == "<EMAIL_1> wrote to <EMAIL_2>, password=<PASSWORD_1>"


def test_of_overlapping_values_the_longest_is_replaced():
    redact = Redactor((), extra=[("SHORT", re.compile("an?n")), ("LONG", re.compile("anna b"))])
    assert one("anna b", redact) == "<LONG_1>"
    assert redact.find("anna b an") == [Span("LONG", 0, 6), Span("SHORT", 7, 9)]


def test_what_comes_to_light_by_a_replacement_is_replaced_too():
    redact = Redactor((), extra=[("A", re.compile("xyz")), ("B", re.compile(r"(?<!\w)q\d"))])
    assert one("xyzq1", redact) == "<A_1><B_1>"


def test_findings_move_with_the_text():
    answer = "Mail anna@example.org about it."
    spans = [(0, 4), (5, 21), (8, 12), (22, 27), (7, 30), (None, None), (21, 21)]
    findings = tuple(Finding(check="c", action="warn", message="m", start=i, end=k) for i, k in spans)
    clean = REDACT(corrected(answer, answer, findings=findings))
    assert clean.exchange.answer == "Mail <EMAIL_1> about it."
    assert [(one.start, one.end) for one in clean.findings] == [
        (0, 4), (5, 14), (5, 14), (15, 20), (5, 23), (None, None), (14, 14),
    ]  # fmt: skip


def test_identifiers_stay_and_traces_of_the_text_go():
    correction = replace(
        corrected("Hello.", "Hello."),
        exchange=replace(
            Exchange.of("q", "Hello."), subject="anna@x.example", tenant="t", message_id="m", split_key="s"
        ),
        error=ValueError("Hello."),
        tokens=(TokenScore(start=0, end=5, logprob=-1.0),),
    )
    clean = REDACT(correction)
    assert clean.exchange == correction.exchange
    assert (clean.error, clean.tokens) == (None, ())


def test_nothing_found_is_nothing_made():
    correction = corrected("It takes 30 days.", "It takes 14 days.")
    assert REDACT(correction) is correction


# --- invariants ---------------------------------------------------------------------------------------------------

VALUES = (
    "anna@x.example", "bob@x.example", "+49 30 1234567", "0049 30 1234567", "555-123-4567", "4111 1111 1111 1111",
    "4111-1111-1111-1111", "DE89 3704 0044 0532 0130 00", "203.0.113.9", "2001:db8::1", "sk-abcdefghij0123456789",
    "password=hunter22", "hunter22", "token: 9f8A7b6C5d4E3f2A1b0C", "//joe:pa55@x.example/", "<EMAIL_1>", "<PHONE_2>",
)  # fmt: skip
WORDS = (
    *VALUES,
    "call",
    "order",
    "it",
    "is",
    "5",
    ".",
    ",",
    "(",
    ")",
    "@",
    "+",
    "-",
    "\n",
    "\ud800",
    "\0",
    "é",
    "=",
    ":",
)
SAME = {"0049 30 1234567": "+49 30 1234567", "4111-1111-1111-1111": "4111 1111 1111 1111"}  # as other ones are written
TEXTS = st.lists(st.sampled_from(WORDS), max_size=9).flatmap(
    lambda words: st.sampled_from(["", " "]).map(lambda gap: gap.join(words))
)


@settings(max_examples=200)
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_redaction_never_shows_up_as_an_edit(question, passage, answer, text):
    same = REDACT(corrected(answer, answer, question=question, context=(passage,)))
    assert same.text == same.exchange.answer
    assert same.edits == ()
    clean = REDACT(corrected(answer, text, question=question, context=(passage,)))
    assert clean.edits == edits_between(clean.exchange.answer, clean.text)
    assert REDACT(clean) == clean
    assert not any(REDACT.find(one) for one in texts_of(clean))


@settings(max_examples=150)
@given(TEXTS, st.sampled_from(VALUES[:11]), st.sampled_from(VALUES[:11]), TEXTS)
def test_an_edit_of_placeholders_is_an_edit_of_values(before, value, other, after):
    answer, text = f"{before} | {value} | {after}", f"{before} | {other} | {after}"
    clean = REDACT(corrected(answer, text))
    if value == other or clean.text == clean.exchange.answer:
        assert SAME.get(value, value) == SAME.get(other, other)
        assert clean.edits == ()
    else:
        assert clean.edits == edits_between(clean.exchange.answer, clean.text) != ()


@settings(max_examples=100)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_at_all(answer, text):
    clean = REDACT(corrected(answer, text))
    assert REDACT(clean) == clean
    assert (answer == text) <= (clean.text == clean.exchange.answer)


# --- your own rules -----------------------------------------------------------------------------------------------


def test_own_patterns_and_detectors():
    def names(text: str) -> list[Span]:
        return [Span("PERSON", match.start(), match.end()) for match in re.finditer("Anna Lind", text)]

    redact = Redactor(extra=[("ORDER", re.compile(r"order (?P<value>\d+)"))], detectors=[names])
    assert one("Anna Lind: order 4711, a@x.example", redact) == "<PERSON_1>: order <ORDER_1>, <EMAIL_1>"
    assert re.fullmatch(r"builtin@1\+ORDER@[0-9a-f]{6}\+names", redact.name)
    other = Redactor(extra=[("ORDER", re.compile("A[0-9]+"))], detectors=[names])
    assert other.name != redact.name


def test_what_is_kept_is_kept_however_it_is_written():
    redact = Redactor(keep=["help@shop.example", "+49 800 1234567", "192.168.1.1"])
    text = "Write to Help@shop.example, call +49-800-1234567, open 192.168.1.1, not anna@shop.example"
    assert one(text, redact) == text.replace("anna@shop.example", "<EMAIL_1>")
    assert redact.name.startswith("builtin@1+keep@")


def test_a_kind_that_is_no_name_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="ORDER"):
        Redactor(extra=[("order number", re.compile("x"))])


def test_a_detector_that_miscounts_is_named():
    def shifty(text: str) -> list[Span]:
        return [Span("X", 0, len(text) + 1)]

    with pytest.raises(ConfigurationError, match="shifty"):
        one("abc", Redactor(detectors=[shifty]))


def test_spans_of_white_space_or_nothing_change_nothing():
    redact = Redactor((), extra=[("X", re.compile(r"\s*"))])
    assert one("a b\n", redact) == "a b\n"


def test_a_redactor_travels_to_another_process():
    copy = pickle.loads(pickle.dumps(REDACT))
    assert one("a@x.example", copy) == "<EMAIL_1>"


# --- feedback -----------------------------------------------------------------------------------------------------


def test_comments_and_edits_are_redacted_and_nothing_else():
    comment = Feedback(kind="comment", value="Ask anna@x.example, not <EMAIL_1>", message_id="m", author="a@x.example")
    clean = REDACT.feedback(comment)
    assert clean == replace(comment, value="Ask <EMAIL_2>, not <EMAIL_1>")
    thumb = Feedback(kind="thumb", value=True, message_id="m")
    assert REDACT.feedback(thumb) is thumb


def test_feedback_gives_no_placeholder_that_means_something_else_in_its_correction():
    about = REDACT(corrected("Write to bob@x.example.", "Write to bob@x.example."))
    edit = Feedback(kind="edit", value="Write to anna@x.example.", message_id="m")
    assert REDACT.feedback(edit, about).value == "Write to <EMAIL_2>."


# --- texts made to be hard ----------------------------------------------------------------------------------------


def test_hard_texts_take_no_longer_than_their_length_explains(run_python):
    support = Path(__file__).parents[1] / "support"
    script = f"""
import sys
sys.path.insert(0, {str(support)!r})
from personal_data import HARD
from aligner_chain import Correction, Exchange
from bootstrap.redact import Redactor
for name, make in HARD.items():
    text = make(100_000)
    Redactor()(Correction(exchange=Exchange.of("", text), text=text, outcome="approved"))
print(len(HARD))
"""
    # Seconds on a busy machine; an expression that backtracks would need hours.
    assert run_python(script).stdout.strip() == str(len(HARD))


# --- as text of a model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_placeholder_is_plain_text_to_tokenizers(vocabulary):
    tokenizer = vocabulary()
    text = " ".join(f"<{kind}_1>" for kind in sorted({pattern.kind for pattern in BUILT_IN}))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert not {f"<{pattern.kind}_1>" for pattern in BUILT_IN} & tokenizer.get_added_vocab().keys()
    if vocabulary in LOSSLESS:
        assert tokenizer.decode(ids) == text


# --- Presidio -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analyzer() -> Any:
    """A real analyzer over spaCy's blank pipeline with two names written into it: no model is needed."""
    import spacy
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    pipeline = spacy.blank("en")
    names = [{"label": "PERSON", "pattern": "Anna Lind"}, {"label": "GPE", "pattern": "Lund"}]
    pipeline.add_pipe("entity_ruler").add_patterns(names)
    engine = SpacyNlpEngine()
    engine.nlp = {"en": pipeline}
    return AnalyzerEngine(nlp_engine=engine)


def test_presidio_finds_names(analyzer):
    redact = Redactor(detectors=[presidio_detector(analyzer)])
    text = "Anna Lind\ud800 of Lund, anna@x.example"
    assert one(text, redact) == "<PERSON_1>\ud800 of <LOCATION_1>, <EMAIL_1>"
    assert redact.name == f"builtin@1+presidio@{version('presidio-analyzer')}-en"


def test_presidio_reads_a_long_text_in_pieces(analyzer):
    text = "word " * 25_000 + "Anna Lind " + "x" * 250_000 + " Lund"
    found = list(presidio_detector(analyzer)(text))
    assert [(span.kind, text[span.start : span.end]) for span in found] == [
        ("PERSON", "Anna Lind"),
        ("LOCATION", "Lund"),
    ]


def test_presidio_downloads_no_model():
    with pytest.raises(ConfigurationError, match="python -m spacy download en_core_web_lg"):
        presidio_detector()
    with pytest.raises(ConfigurationError, match="python -m spacy download de_core_news_lg"):
        presidio_detector(language="de")


@pytest.mark.parametrize("wrong", [{"language": "fr"}, {"entities": ["NAME"]}])
def test_presidio_says_what_it_does_not_know(analyzer, wrong):
    with pytest.raises(ConfigurationError, match=r"en|PERSON"):
        presidio_detector(analyzer, **wrong)


def test_without_presidio_the_error_says_what_to_install(run_python):
    script = """
import sys
sys.modules["presidio_analyzer"] = None
from bootstrap.redact import Redactor, presidio_detector
Redactor()
try:
    presidio_detector()
except ImportError as error:
    print(error)
"""
    assert "pip install 'aligner-chain[presidio]'" in run_python(script).stdout


def test_redaction_loads_neither_presidio_nor_a_database(run_python):
    script = """
import sys
from bootstrap.redact import Redactor
print(sorted({"presidio_analyzer", "spacy", "sqlalchemy", "torch"} & sys.modules.keys()))
"""
    assert run_python(script).stdout.strip() == "[]"


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(capsys):
    run_examples(PAGE)
    assert capsys.readouterr().out.splitlines() == [
        "Write to <EMAIL_1> or call <PHONE_1>.",
        "<EMAIL_1> ()",
        "Order <ORDER_1>, help@shop.example",
        "<CUSTOMER_1> of ours",
        "Better: <EMAIL_1>",
    ]
