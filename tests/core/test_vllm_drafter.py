"""The drafter for vLLM, driven as vLLM drives it: rows of tokens in, one draft each, and what the model says is taken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import micro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.templates import get_template
from aligner_chain.vllm import AnswerDrafter, Drafts, Frame, read_frame

FRAME = Frame(answer=1, output=2, fix=3, end=4)
WINDOW = 400
words = st.lists(st.integers(10, 40), max_size=60)


def decode(drafts: Drafts, prompts: list[list[int]], outputs: list[list[int]]) -> list[list[int]]:
    """Runs rows side by side, and returns how many tokens each step gave to each row."""
    rows = [[*prompt, output[0]] for prompt, output in zip(prompts, outputs, strict=True)]
    steps: list[list[int]] = [[] for _ in rows]
    while any(len(row) < len(prompt) + len(output) for row, prompt, output in zip(rows, prompts, outputs, strict=True)):
        for row, prompt, output, taken in zip(rows, prompts, outputs, steps, strict=True):
            left = output[len(row) - len(prompt) :]
            if not left:
                continue
            draft = drafts.propose(np.array(row, dtype=np.int32))
            right = next((at for at, pair in enumerate(zip(draft, left, strict=False)) if pair[0] != pair[1]), None)
            given = left[: (min(len(draft), len(left)) if right is None else right) + 1]
            row.extend(given)
            taken.append(len(given))
    return steps


def prompt(answer: list[int]) -> list[int]:
    return [7, 8, FRAME.answer, *answer, FRAME.output]


def test_a_copy_costs_one_step_and_an_edit_a_few() -> None:
    answer = list(range(10, 50))
    copied = [FRAME.fix, *answer, FRAME.end]
    edited = [FRAME.fix, *answer[:12], 90, *answer[13:30], *answer[33:], FRAME.end]
    (copy,) = decode(Drafts(FRAME, 64), [prompt(answer)], [copied])
    (edit,) = decode(Drafts(FRAME, 64), [prompt(answer)], [edited])
    assert copy == [41]
    assert len(edit) <= 5


def test_of_a_kept_answer_and_a_prompt_of_another_kind_nothing_is_drafted() -> None:
    drafts = Drafts(FRAME, 8)
    assert drafts.propose(np.array([*prompt([10, 11]), 5])) == []
    assert drafts.propose(np.array(prompt([10, 11]))) == []
    assert drafts.propose(np.array([10, 11, 12])) == []


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5), st.integers(1, 16))
def test_no_draft_is_longer_than_allowed_or_goes_on_behind_the_end(pairs: list, most: int) -> None:
    drafts = Drafts(FRAME, most)
    outputs = [[FRAME.fix, *text, FRAME.end] for _, text in pairs]
    for steps, output in zip(decode(drafts, [prompt(answer) for answer, _ in pairs], outputs), outputs, strict=True):
        assert sum(steps) == len(output) - 1
        assert max(steps) <= most + 1


def test_rows_with_the_same_prompt_and_rows_run_again_are_drafted_as_well() -> None:
    answer = list(range(10, 50))
    one, other = [FRAME.fix, *answer, FRAME.end], [FRAME.fix, *answer[:20], 90, *answer[21:], FRAME.end]
    drafts = Drafts(FRAME, 16)
    steps = decode(drafts, [prompt(answer)] * 2, [one, other])
    assert max(map(len, steps)) <= 6
    assert decode(drafts, [prompt(answer)], [one]) == [[17, 17, 7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aligner")
    micro.tokenizer().save_pretrained(path)
    return path


def configured(folder: Path) -> SimpleNamespace:
    """What of vLLM's configuration is read."""
    hf = SimpleNamespace(eos_token_id=[micro.tokenizer().eos_token_id])
    return SimpleNamespace(
        model_config=SimpleNamespace(tokenizer=str(folder), hf_config=hf),
        speculative_config=SimpleNamespace(num_speculative_tokens=32),
    )


def test_vllm_s_batch_of_ragged_rows(folder: Path) -> None:
    drafter, tokenizer = AnswerDrafter(configured(folder)), micro.tokenizer()
    drafter.load_model(None)
    template, exchange = get_template("aligner-chain/1"), Exchange.of("say tea sun", "tea sun is bad")
    rendered = template.render(exchange, tokenizer, window=WINDOW)
    fixed = template.target(tokenizer, "tea sun is good")
    tokens = np.zeros((3, WINDOW), dtype=np.int32)
    for row, known in enumerate([(*rendered.prompt, *fixed[:1]), rendered.prompt[:3], (*rendered.prompt, *fixed[:1])]):
        tokens[row, : len(known)] = known
    lengths = np.array([len(rendered.prompt) + 1, 3, len(rendered.prompt) + 1])
    drafts = drafter.propose([[fixed[0]], [], [fixed[0]]], lengths, tokens, None)
    assert drafts[0] == drafts[2] == [*rendered.draft.ids, tokenizer.eos_token_id]
    assert drafts[1] == []


def test_a_tokenizer_without_the_template_drafts_nothing(folder: Path, tmp_path: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<|ac:")]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert AnswerDrafter(configured(tmp_path)).propose([[5]], np.array([2]), np.zeros((1, 9), dtype=np.int32)) == [[]]


def test_a_folder_without_a_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json.*local folder"):
        read_frame(tmp_path, 2)
