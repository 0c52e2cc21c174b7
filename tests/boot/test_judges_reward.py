"""A reward model as judge: real tiny classifiers, with and without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange, Turn
from bootstrap.judges import RewardModelJudge

ASKED = Exchange.of("Where is it?", "")


def llama(folder: Path, tokenizer: Any, labels: int = 1, window: int = 64) -> Path:
    """A random classifier; its scores differ by more than rounding."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_labels=labels, max_position_embeddings=window, initializer_range=0.4, **shape
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    return llama(tmp_path / "reward", tokenizer)


def by_hand(folder: Path, tokenizer: Any, prompt: Exchange, answer: str) -> float:
    """The score of one answer alone, through the chat template as its author uses it."""
    messages = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
    ids = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], return_dict=False)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def test_scores_are_those_of_the_model_whatever_the_batch(folder: Path, tokenizer: Any) -> None:
    texts = ["In Rome.", "I do not know where it is.", "", "half \ud83d"]
    expected = [by_hand(folder, tokenizer, ASKED, text.replace("\ud83d", "\ufffd")) for text in texts]
    for batch in (1, 3):
        assert RewardModelJudge(folder, batch=batch).scores([ASKED] * 4, texts) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 2) for score in expected}) == 4


def test_the_higher_reward_wins_and_both_orders_mirror(folder: Path) -> None:
    judge = RewardModelJudge(folder)
    low, high = sorted(("In Rome.", "I do not know where it is."), key=lambda text: judge.scores([ASKED], [text])[0])
    found = judge.prefer([ASKED] * 3, [low, high, low], [high, low, low])
    assert [one.score for one in found] == [1.0, 0.0, 0.5]
    assert found[0].reason.startswith("rewards ")
    gap = abs(judge.scores([ASKED], [high])[0] - judge.scores([ASKED], [low])[0])
    assert RewardModelJudge(folder, margin=gap + 1e-3).prefer([ASKED], [low], [high])[0].score == 0.5
    assert RewardModelJudge(folder, margin=gap - 1e-3).prefer([ASKED], [low], [high])[0].score == 1.0


def test_no_text_spells_a_special_token_and_long_ones_keep_their_end(folder: Path, tokenizer: Any) -> None:
    judge = RewardModelJudge(folder)
    spelled = f"In {tokenizer.eos_token} Rome."
    assert judge.scores([ASKED], [spelled])[0] != pytest.approx(by_hand(folder, tokenizer, ASKED, spelled), abs=1e-4)
    long = Exchange(turns=(Turn(role="user", text="a" * 500),), answer="")
    one, other, again = judge.scores([long] * 3, ["In Rome.", "In Oslo.", "In Rome."])
    assert one != other
    assert one == again


def test_one_of_several_labels_and_the_errors_that_say_so(tmp_path: Path, tokenizer: Any) -> None:
    folder = llama(tmp_path / "labels", tokenizer, labels=3)
    with pytest.raises(ConfigurationError, match=r"labels 'LABEL_0'.*label='LABEL_2'"):
        RewardModelJudge(folder).scores([ASKED], ["a"])
    scores = [RewardModelJudge(folder, label=f"LABEL_{n}").scores([ASKED], ["a"])[0] for n in range(3)]
    assert sum(1 / (1 + pow(2.718281828459045, -score)) for score in scores) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ConfigurationError, match="no model folder"):
        RewardModelJudge(tmp_path / "nowhere").scores([ASKED], ["a"])
    with pytest.raises(ConfigurationError, match="margin"):
        RewardModelJudge(folder, margin=-1)


def test_without_a_chat_template_question_and_answer_are_a_pair(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = None
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=32, initializer_range=0.4, **shape
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = RewardModelJudge(str(tmp_path))
    one, other = judge.scores([ASKED] * 2, ["In Rome.", "No idea, " * 20])
    assert one != other
    assert judge.scores([Exchange.of("Who?", "")], ["In Rome."])[0] != one
