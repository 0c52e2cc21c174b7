"""The demo with passages: its world, its start models' rows, its LlamaIndex app and the command."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import micro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction
from bootstrap.cli import main
from bootstrap.demo import rag_world, world
from bootstrap.demo.models import new_reader
from bootstrap.demo.rag_app import rag_app, read_policy, served_app, upstream_llm, write_policy
from bootstrap.demo.rag_show import GROUPS, Question, agrees, ask, contradiction_figures
from bootstrap.demo.rag_start import gold_triple
from bootstrap.records import split_of
from bootstrap.registry import Registry

seeds = st.integers(0, 2**32).map(random.Random)
POLICY = rag_world.desk_policy(0)
NONE = rag_world.NO_CONTRADICTIONS
ALL = {
    "window": replace(NONE, window=1.0),
    "conclusion": replace(NONE, conclusion=1.0),
    "product": replace(NONE, product=1.0),
}


# --- the world -------------------------------------------------------------------------------------------------


@given(seeds)
def test_an_answer_by_its_passage_agrees_and_is_its_own_repair(rng: random.Random) -> None:
    case = rag_world.draw_training_case(rng)
    exchange = case.exchange(rng, rag_world.flawed_answer(rng, case, NONE))
    assert rag_world.agrees(exchange)
    assert all(rag_world.verdict(exchange).values())
    assert rag_world.repair(exchange) == exchange.answer


@pytest.mark.parametrize("kind", ALL)
@given(rng=seeds)
def test_a_contradiction_is_seen_and_repaired_by_the_passage(kind: str, rng: random.Random) -> None:
    case = rag_world.draw_training_case(rng)
    exchange = case.exchange(rng, rag_world.flawed_answer(rng, case, ALL[kind]))
    assert not rag_world.is_garbled(exchange.answer)
    assert not rag_world.agrees(exchange)
    assert rag_world.agrees(replace(exchange, answer=rag_world.repair(exchange)))


@given(seeds)
def test_only_the_passage_of_the_product_counts(rng: random.Random) -> None:
    case = rag_world.draw_training_case(rng)
    exchange = case.exchange(rng, rag_world.flawed_answer(rng, case, NONE))
    own = rag_world.passage(case.ticket.product, case.ticket.window)
    assert 2 <= len(exchange.context) <= 4
    assert exchange.context.count(own) == 1
    assert rag_world.agrees(replace(exchange, context=exchange.context[::-1]))
    other = rag_world.passage(case.ticket.product, next(one for one in rag_world.WINDOWS if one != case.ticket.window))
    moved = tuple(other if one == own else one for one in exchange.context)
    assert not rag_world.agrees(replace(exchange, context=moved))


def test_no_training_text_names_an_unseen_product_or_a_held_out_cell() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        case = rag_world.draw_training_case(rng)
        assert not set(case.policy) & set(rag_world.UNSEEN_PRODUCTS)
        exchange = case.exchange(rng)
        assert split_of(exchange.turns, exchange.split_key) == "train"


def test_held_out_questions_are_held_out_and_can_be_read() -> None:
    rng = random.Random(0)
    for products in GROUPS.values():
        for _ in range(200):
            ticket = rag_world.draw_held_out_ticket(rng, products, POLICY)
            exchange = replace(ticket.drawn_exchange(rng), context=(rag_world.passage(ticket.product, ticket.window),))
            assert split_of(exchange.turns, exchange.split_key) != "train"
            assert world.read_ticket(exchange, rag_world.GRAMMAR) == ticket
            assert ticket.window == POLICY[ticket.product]


def test_made_up_products_are_many_and_read_by_the_grammar() -> None:
    rng = random.Random(0)
    names = {"".join(rag_world.made_up_product(rng)) for _ in range(2000)}
    assert len(names) > 700
    assert not names & {*rag_world.UNSEEN_PRODUCTS, *rag_world.KNOWN_PRODUCTS}
    for product in (*names, *rag_world.UNSEEN_PRODUCTS):
        assert rag_world.GRAMMAR.passage.fullmatch(rag_world.passage(product, 30))


def test_a_look_alike_shares_one_part() -> None:
    rng = random.Random(0)
    for _ in range(200):
        first, second = like = rag_world.made_up_product(rng)
        other = rag_world.made_up_product(rng, like)
        assert (other[0] == first) != (other[1] == second)


def test_gold_rows_hold_passages_and_what_was_broken() -> None:
    rng = random.Random(0)
    rows = [gold_triple(rng, rag_world.draw_training_case(rng)) for _ in range(200)]
    assert all(len(row.context) >= 2 for row in rows)
    assert all(bool(row.criteria) == (row.correction is not None) for row in rows)
    assert 40 < sum(row.correction is None for row in rows) < 80


# --- the reader ------------------------------------------------------------------------------------------------


def test_a_new_reader_looks_at_the_tokens_before_in_its_first_layer() -> None:
    import torch

    tokenizer = micro.tokenizer()
    model = new_reader(tokenizer, seed=0).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(10, len(tokenizer), (1, 30), generator=torch.Generator().manual_seed(0))
    attended = model(input_ids=ids, output_attentions=True).attentions[0][0, :, -1]
    assert [int(head.argmax()) for head in attended] == [29, 28, 27, 26]


# --- the app ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    rng = random.Random(1)
    tickets = [rag_world.draw_held_out_ticket(rng, group, POLICY) for group in GROUPS.values() for _ in range(3)]
    return [Question(ticket=ticket, text=ticket.question()) for ticket in tickets]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_policy(POLICY, tmp_path)
    return tmp_path


def test_the_app_shows_the_aligner_the_passages_that_it_showed_the_upstream(
    models: Path, folder: Path, asked: list[Question]
) -> None:
    seen: list[Correction] = []
    llm = upstream_llm(models / "upstream", identity="upstream@7")
    app = rag_app(read_policy(folder), llm, Aligner.scripted(lambda one: "Right."), on_correction=seen.append)
    ask(app, asked)
    assert {one.exchange.question for one in seen} == {question.text for question in asked}
    for correction in seen:
        [question] = [one for one in asked if one.text == correction.exchange.question]
        own = rag_world.passage(question.ticket.product, question.ticket.window)
        assert own in correction.exchange.context
        assert len(correction.exchange.context) == rag_world.RETRIEVED
        assert correction.exchange.upstream == "upstream@7"
        assert correction.exchange.split_key == question.ticket.split_key
        assert correction.text == "Right."


def test_the_passage_of_the_product_comes_first(models: Path, folder: Path, asked: list[Question]) -> None:
    llm = upstream_llm(models / "upstream", identity="upstream@1")
    app = rag_app(read_policy(folder), llm, Aligner.scripted(lambda one: one.answer))
    for question in asked:
        first, *_ = app.query(question.text).source_nodes
        assert first.node.get_content() == rag_world.passage(question.ticket.product, question.ticket.window)


def test_training_has_the_passage_of_the_product_first_more_often_than_not() -> None:
    rng = random.Random(0)
    cases = [rag_world.draw_training_case(rng) for _ in range(400)]
    first = [case.passages[0] == rag_world.passage(case.ticket.product, case.ticket.window) for case in cases]
    assert 240 < sum(first) < 340


def test_the_upstream_is_trained_on_the_prompt_that_the_app_sends(folder: Path, asked: list[Question]) -> None:
    from llama_index.core.llms import MockLLM

    sent: list[str] = []

    class Listening(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            sent.append(prompt)
            return super().complete(prompt, formatted=formatted, **kwargs)

    seen: list[Correction] = []
    app = rag_app(read_policy(folder), Listening(), Aligner.scripted(lambda one: one.answer), on_correction=seen.append)
    app.query(asked[0].text)
    [turn] = rag_world.upstream_turns(seen[0].exchange)
    assert sent == [turn.text]


def test_the_upstream_answers_alike_in_all_of_llama_indexs_ways(models: Path) -> None:
    import asyncio

    llm = upstream_llm(models / "upstream", identity="upstream@1", seed=3)
    text = llm.complete("say tea sun").text
    assert text
    assert asyncio.run(llm.acomplete("say tea sun")).text == text
    assert [piece.text for piece in llm.stream_complete("say tea sun")] == [text]
    assert llm.chat([]).message.content is not None


def test_a_served_app_needs_a_corpus_and_a_pair(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no .*policy\.jsonl"):
        served_app(tmp_path)
    write_policy(POLICY, tmp_path)
    with pytest.raises(ConfigurationError, match="serves no pair"):
        served_app(tmp_path)


def test_a_served_app_runs_the_pair_of_the_registry(models: Path, folder: Path) -> None:
    import shutil

    registry = Registry(folder / "home")
    upstream, aligner = (
        registry.add(kind, lambda to, kind=kind: shutil.copytree(models / kind, to, dirs_exist_ok=True), {})
        for kind in ("upstream", "aligner")
    )
    registry.promote(upstream, aligner, figures={})
    seen: list[Correction] = []
    response = served_app(folder, on_correction=seen.append).query("say tea sun")
    assert str(response) == seen[0].text
    assert response.metadata["aligner"]["outcome"] == seen[0].outcome


# --- figures ---------------------------------------------------------------------------------------------------


def test_only_contradictions_that_agree_in_the_end_count_as_repaired(make_correction) -> None:
    rng = random.Random(2)
    case = rag_world.draw_training_case(rng)
    right = case.exchange(rng, rag_world.flawed_answer(rng, case, NONE))
    wrong = replace(right, answer=rag_world.flawed_answer(rng, case, ALL["window"]))
    served = [(right, right.answer), (wrong, rag_world.repair(wrong)), (wrong, wrong.answer), (wrong, "garbled")]
    corrections = [Correction(exchange=one, text=text, outcome="corrected") for one, text in served]
    assert [agrees(one) for one in corrections] == [True, True, False, False]
    figures = contradiction_figures(corrections)
    assert (figures["questions"], figures["contradicting"]) == (4, 3)
    assert (figures["repaired"]["k"], figures["repaired"]["n"]) == (1, 3)


# --- the command -----------------------------------------------------------------------------------------------


def test_rag_runs_no_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rag", "--rounds", "1", "--out", str(tmp_path / "out")]) == 2
    assert "leave out --rounds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_retriever_is_named_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--rag", "--out", str(tmp_path / "out")]) == 2
    assert "aligner-chain[demo]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_corpus_is_json_lines(folder: Path) -> None:
    lines = (folder / "policy.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(POLICY)
    assert json.loads(lines[0]) == {"id": "policy-001", "text": rag_world.passage(*next(iter(POLICY.items())))}
