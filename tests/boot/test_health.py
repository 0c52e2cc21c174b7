"""What a training did besides what it was to do."""

from __future__ import annotations

import json
from pathlib import Path

import micro
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligner_chain.exchange import Exchange
from bootstrap.errors import TrainingDataError
from bootstrap.health import answer_shares, health_limits, is_refusal, measure_health
from bootstrap.pairs import Pair
from bootstrap.upstream import preference_rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same to which the word "good" became likelier everywhere."""
    root, tokenizer = tmp_path_factory.mktemp("health"), micro.tokenizer()
    model = micro.new_model(tokenizer, seed=0, hidden=32, layers=1)
    for name in ("reference", "candidate"):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        good = tokenizer(" good", add_special_tokens=False).input_ids[-1]
        with torch.no_grad():
            model.get_output_embeddings().weight[good] *= 3
    return root / "reference", root / "candidate"


def pair(question: str) -> Pair:
    return Pair(
        turns=Exchange.of(question, "").turns,
        chosen=f"{micro.answer(question, 'good')} tea",
        rejected=f"{micro.answer(question, 'bad')} tea",
        correction_id="1",
    )


def log_prob(folder: Path, one: Pair) -> list[float]:
    """One row at a time, without padding: the slow way."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (row,) = preference_rows(tokenizer, [one])
    ids = torch.tensor([[*row["prompt_ids"], *row["chosen_ids"]]])
    likely = model(ids).logits[0].log_softmax(-1).detach()
    start = len(row["prompt_ids"])
    return [float(likely[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])]


def test_likelihoods_are_those_of_whole_answers_by_part(folders: tuple[Path, Path]) -> None:
    reference, candidate = folders
    probe = [pair(q) for q in micro.questions()[:6]]
    other = [Exchange.of("say fig", "owl bee")]
    found = measure_health(candidate, reference, probe, unrelated=other).likelihoods
    assert found is not None
    changes = [
        [after - before for before, after in zip(log_prob(reference, one), log_prob(candidate, one), strict=True)]
        for one in probe
    ]
    assert found.chosen_fallen == sum(sum(change) < 0 for change in changes) / 6
    edited = [change[3] for change in changes]
    assert found.edited == pytest.approx(sum(edited) / 6, abs=1e-4)
    prefix = [value for change in changes for value in change[:3]]
    suffix = [value for change in changes for value in change[4:]]
    assert found.prefix == pytest.approx(sum(prefix) / len(prefix), abs=1e-4)
    assert found.suffix == pytest.approx(sum(suffix) / len(suffix), abs=1e-4)
    assert found.drift is not None
    assert found.drift > 0
    same = measure_health(reference, reference, probe, unrelated=other).likelihoods
    assert same is not None
    assert (same.chosen_fallen, same.drift, same.edited) == (0.0, 0.0, 0.0)


def test_answers_are_looked_at_for_loops_breaks_and_refusals() -> None:
    texts = [
        "All is well.",
        "I am sorry, but I cannot help with that.",
        "the cat sat the cat sat the cat sat.",
        "It ends in the",
    ]
    found = answer_shares(texts, garbled=lambda text: "sat" in text)
    assert (found.repetition, found.broken_off, found.refusals, found.garbled) == (0.25, 0.25, 0.25, 0.25)
    assert found.words == (3 + 9 + 9 + 4) / 4
    assert answer_shares(["a b a b a b."] * 9).distinct < answer_shares(["a b c d e f."]).distinct
    nothing = answer_shares([])
    assert (nothing.answers, nothing.words, nothing.garbled) == (0, 0.0, None)


@pytest.mark.parametrize("text", ["I'm sorry, but I can't do that.", "I cannot say.", "As an AI, I know nothing."])
def test_refusals_are_known_by_how_they_begin(text: str) -> None:
    assert is_refusal(text)
    assert not is_refusal("You can refuse it: I cannot is what they say.")


def test_limits_are_on_what_became_worse(folders: tuple[Path, Path]) -> None:
    fine, bad = ["All is well."] * 50, ["All is well, all is well, and it is as well as it was"] * 50
    health = measure_health(*folders, [], answers=(fine, bad))
    broken = {name: ok for name, _, _, ok in health_limits(health)}
    assert broken == {"length_ratio": False, "repetition": True, "broken_off": False, "refusals": True}
    turned = measure_health(*folders, [], answers=(bad, fine))
    assert all(ok for *_, ok in health_limits(turned))
    assert ("length_ratio", 3 / 14, 0.2, False) in health_limits(turned, {"length_ratio": 0.2})
    json.dumps(health.as_dict(), allow_nan=False)
    with pytest.raises(TrainingDataError, match="same prompts"):
        measure_health(*folders, [], answers=(fine, bad[1:]))
