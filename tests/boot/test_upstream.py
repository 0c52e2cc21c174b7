"""What the upstream's training looks at, starts from and needs, on models of a few thousand weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import micro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from bootstrap.errors import TrainingDataError, TrainingFailedError
from bootstrap.health import measure_health
from bootstrap.pairs import Pair, read_pairs, write_pairs
from bootstrap.upstream import (
    DPOSettings,
    EditSpanCollator,
    check_memory,
    edit_masks,
    estimate_memory,
    save_model,
    select_rows,
    train_upstream,
)
from bootstrap.upstream.collator import token_edits
from bootstrap.upstream.rows import version_ages

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
QUICK: dict[str, Any] = {"steps": 2, "batch": 4, "learning_rate": 1e-2, "extra": {"logging_steps": 1}}


def pairs(number: int = 12, **changes: Any) -> list[Pair]:
    return [
        Pair(
            turns=Exchange.of(q, "").turns,
            chosen=micro.answer(q, "good"),
            rejected=micro.answer(q, "bad"),
            correction_id=str(index),
            **changes,
        )
        for index, q in enumerate(micro.questions()[:number])
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("base"), micro.tokenizer()
    micro.new_model(tokenizer, seed=0, hidden=32, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def journal(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "progress.jsonl").read_text().splitlines()]


# --- where the loss looks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "masks"),
    [
        (
            [1, 2, 3, 9],
            [1, 7, 2, 3, 9],
            ([0, 1, 0, 0], [0, 1, 1, 0, 0]),
        ),  # a deletion leaves its boundary in the chosen
        ([1, 7, 2, 3, 9], [1, 2, 3, 9], ([0, 1, 1, 0, 0], [0, 1, 0, 0])),  # an insertion, the other way about
        ([1, 2, 5, 4, 9], [1, 2, 6, 4, 9], ([0, 0, 1, 1, 0], [0, 0, 1, 1, 0])),
        ([1, 2], [1, 2, 3], ([0, 1], [0, 0, 1])),  # nothing follows: the token before is the boundary
        ([1, 2, 9], [5, 6, 7, 8, 9], ([1, 1, 1], [1, 1, 1, 1, 1])),  # a rewrite counts as a whole
        ([1, 2, 9], [1, 2, 9], ([1, 1, 1], [1, 1, 1])),  # a replayed answer too
    ],
)
def test_the_mask_covers_the_edits_and_one_boundary_token(chosen: list, rejected: list, masks: tuple) -> None:
    assert edit_masks(chosen, rejected) == masks


tokens = st.lists(st.integers(0, 5), min_size=1, max_size=30)


@given(chosen=tokens, rejected=tokens)
def test_edits_turn_one_answer_into_the_other_and_no_mask_is_empty(chosen: list[int], rejected: list[int]) -> None:
    edits = token_edits(chosen, rejected)
    made, at = [], 0
    for (start, end), (old_start, old_end) in zip(edits.chosen, edits.rejected, strict=True):
        made += [*rejected[at:old_start], *chosen[start:end]]
        at = old_end
    assert [*made, *rejected[at:]] == chosen
    assert 0 <= edits.ratio <= 1
    for ids, mask in zip((chosen, rejected), edit_masks(chosen, rejected, 0.0), strict=True):
        assert len(mask) == len(ids)
        assert any(mask)


def test_precomputed_references_and_masks_of_edits_are_never_combined() -> None:
    row = {"prompt_ids": (1,), "chosen_ids": (2,), "rejected_ids": (3,), "ref_chosen_logps": 0.0}
    with pytest.raises(TrainingDataError, match="whole answers"):
        EditSpanCollator(lambda rows: {})([row])
    with pytest.raises(ConfigurationError, match="cannot be used together"):
        DPOSettings(extra={"precompute_ref_log_probs": True})
    DPOSettings(extra={"precompute_ref_log_probs": True}, collator="whole")


def test_copied_tokens_take_no_part_in_the_preference_but_are_held(base: Path, tmp_path: Path) -> None:
    """Under the edits' mask alone nothing would make the copied beginning of an answer likelier."""
    settings = DPOSettings(lora=None, steps=8, batch=4, learning_rate=5e-3, extra={"logging_steps": 1})
    save_model(train_upstream(base, pairs(4), tmp_path / "work", settings), base, tmp_path / "out")
    found = measure_health(tmp_path / "out", base, pairs(4)).likelihoods
    assert found is not None
    assert found.prefix is not None
    assert found.prefix > 1
    train_upstream(base, pairs(4), tmp_path / "whole", replace(settings, steps=1, collator="whole"))
    first, whole = (journal(tmp_path / name)[0] for name in ("work", "whole"))
    assert first["logps/chosen"] > whole["logps/chosen"] / 2  # two tokens of five, not five
    assert first["loss"] == pytest.approx(whole["loss"], rel=1e-4)  # no preference yet, and the same likelihood


# --- which rows ------------------------------------------------------------------------------------------------


def test_pairs_of_old_versions_are_thinned_out_and_expire_always_the_same_ones() -> None:
    tokenizer = micro.tokenizer()
    aged = [
        replace(pair, correction_id=f"{version}-{pair.correction_id}", upstream=version and f"upstream@{version}")
        for version in (1, 4, 9, None)
        for pair in pairs(40)
    ]
    assert [version_ages(aged)[index] for index in (0, 40, 80, 120)] == [2, 1, 0, None]
    settings = DPOSettings(age_discount=0.5, max_age=1)
    found = select_rows(tokenizer, aged, settings)
    assert found.dropped["expired"] == 40
    assert 8 <= found.dropped["discounted for age"] <= 32
    assert len(found.rows) == 160 - sum(found.dropped.values())
    fewer = select_rows(tokenizer, aged[40:], settings)
    assert fewer.rows == found.rows
    assert select_rows(tokenizer, aged, replace(settings, seed=1)).rows != found.rows


def test_replayed_answers_are_a_share_of_all_rows_and_no_preference(base: Path, tmp_path: Path) -> None:
    tokenizer, known = micro.tokenizer(), pairs(40)[12:]
    found = select_rows(tokenizer, pairs(), DPOSettings(replay=0.25), replay=known)
    assert (len(found.rows), found.replayed) == (16, 4)
    assert all(row["chosen_ids"] == row["rejected_ids"] for row in found.rows[12:])
    settings = DPOSettings(lora=None, **QUICK)
    alone = replace(settings, loss_weights=(1.0, 0.0))
    equal = [replace(one, rejected=one.chosen) for one in pairs(4)]
    train_upstream(base, equal, tmp_path / "preference", alone)
    train_upstream(base, equal, tmp_path / "both", settings)
    assert journal(tmp_path / "preference")[0]["grad_norm"] < 1e-5 < 0.1 < journal(tmp_path / "both")[0]["grad_norm"]
    with pytest.raises(ConfigurationError, match="replay = 0"):
        select_rows(tokenizer, pairs(), DPOSettings(extra={"loss_type": "nca_pair"}), replay=known)


def test_what_does_not_fit_is_left_out_whole_and_counted() -> None:
    tokenizer = micro.tokenizer()
    longest = select_rows(tokenizer, pairs(), DPOSettings()).longest
    assert select_rows(tokenizer, pairs(), DPOSettings(max_length=longest)).dropped == {}
    with pytest.raises(TrainingDataError, match="12 too long"):
        select_rows(tokenizer, pairs(), DPOSettings(max_length=longest - 1))


def test_a_pair_that_the_window_has_no_room_for_is_left_out_without_being_asked(base: Path, tmp_path: Path) -> None:
    tokenizer = micro.tokenizer()
    longest = select_rows(tokenizer, pairs(), DPOSettings()).longest
    long = replace(pairs(1)[0], rejected="tea " * 500)
    assert select_rows(tokenizer, [*pairs(), long], DPOSettings(), window=longest).dropped == {"too long": 1}
    found = select_rows(tokenizer, pairs(), DPOSettings(replay=0.5), replay=[long], window=longest)
    assert (found.replayed, found.dropped) == (1, {})  # the chosen answer alone is replayed, and fits
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=48, bos_token_id=None)
    )
    model.save_pretrained(tmp_path / "gpt2")  # its table of positions ends with the window
    tokenizer.save_pretrained(tmp_path / "gpt2")
    train_upstream(tmp_path / "gpt2", [*pairs(), long], tmp_path / "work", DPOSettings(lora=None, **QUICK))
    probe = [*pairs(3), replace(long, chosen="tea " * 500)]
    likelihoods = measure_health(tmp_path / "gpt2", tmp_path / "gpt2", probe).likelihoods
    assert likelihoods is not None
    assert (likelihoods.pairs, likelihoods.chosen_fallen) == (3, 0.0)


def test_a_tokenizer_without_an_end_is_told_by_what_it_lacks() -> None:
    tokenizer = micro.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TrainingDataError, match="no EOS token"):
        select_rows(tokenizer, pairs(), DPOSettings())


def test_pairs_go_through_a_file(tmp_path: Path) -> None:
    written = [*pairs(3, upstream="upstream@2"), *pairs(1)]
    write_pairs(tmp_path / "pairs.jsonl", written)
    assert read_pairs(tmp_path / "pairs.jsonl") == written
    (tmp_path / "bad.jsonl").write_text('{"turns": [], "chosen": "a"}\n')
    with pytest.raises(TrainingDataError, match="line 1"):
        read_pairs(tmp_path / "bad.jsonl")


# --- from where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "adapter"])
def test_each_start_refers_to_what_it_says(base: Path, tmp_path: Path, lora: dict | None) -> None:
    """The margin at the first step is 0 where the reference is what is trained, and is not against the base."""
    fresh = DPOSettings(lora=lora, **QUICK)
    save_model(train_upstream(base, pairs(), tmp_path / "fresh", fresh), base, tmp_path / "parent")
    margins = {"fresh": journal(tmp_path / "fresh")[0]["rewards/margins"]}
    for start in ("continue", "anchor"):
        settings = replace(fresh, start=start)
        trained = train_upstream(base, pairs(), tmp_path / start, settings, parent=tmp_path / "parent")
        margins[start] = journal(tmp_path / start)[0]["rewards/margins"]
        save_model(trained, base, tmp_path / f"{start}-out")
        assert not [path for path in (tmp_path / f"{start}-out").iterdir() if path.is_dir()]  # no reference in it
        AutoModelForCausalLM.from_pretrained(tmp_path / f"{start}-out")
    assert margins["fresh"] == pytest.approx(0.0, abs=1e-6)
    assert margins["continue"] == pytest.approx(0.0, abs=1e-6)
    assert abs(margins["anchor"]) > 1e-4
    with pytest.raises(ConfigurationError, match="parent"):
        train_upstream(base, pairs(), tmp_path / "none", replace(fresh, start="anchor"))
    other = replace(fresh, start="continue", lora=LORA if lora is None else None)
    with pytest.raises(ConfigurationError, match="Set lora as it was"):
        train_upstream(base, pairs(), tmp_path / "none", other, parent=tmp_path / "parent")


def test_parts_of_a_batch_one_after_the_other_train_alike(base: Path, tmp_path: Path) -> None:
    """Not to the bit, and only where all parts have as many tokens."""
    same = [replace(pair, turns=pairs(1)[0].turns) for pair in pairs(8)]
    settings = DPOSettings(lora=None, steps=2, batch=8, learning_rate=1e-3, collator="whole")
    whole, parts = (
        train_upstream(base, same, tmp_path / str(k), replace(settings, accumulate=k)).state_dict() for k in (1, 4)
    )
    assert all(torch.allclose(weight, parts[name], atol=1e-4) for name, weight in whole.items())
    with pytest.raises(ConfigurationError, match="multiple of 3"):
        train_upstream(base, same, tmp_path / "odd", replace(settings, accumulate=3))


def test_a_loss_that_is_no_number_ends_the_training(base: Path, tmp_path: Path) -> None:
    settings = DPOSettings(
        lora=None, steps=5, batch=4, learning_rate=1e30, extra={"logging_steps": 1, "warmup_steps": 0}
    )
    with pytest.raises(TrainingFailedError, match="Lower the learning rate"):
        train_upstream(base, pairs(), tmp_path, settings)


def test_four_bits_need_a_gpu_and_say_so(base: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigurationError, match="needs an NVIDIA GPU"):
        train_upstream(base, pairs(), tmp_path, DPOSettings(quantized="4bit", memory_check=False))


@pytest.mark.parametrize(
    "wrong",
    [
        {"collator": "some"},
        {"start": "again"},
        {"quantized": "8bit"},
        {"replay": 1.0},
        {"age_discount": 0.0},
        {"max_age": -1},
        {"max_length": 1},
        {"quantized": "4bit", "lora": None},
        {"chosen_only": True, "start": "anchor"},
        {"extra": {"max_length": 9}},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        DPOSettings(**wrong)


# --- how much memory -------------------------------------------------------------------------------------------


def test_the_estimate_counts_the_weights_as_they_are(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    size = 4 * sum(weight.numel() for weight in model.parameters())
    whole = estimate_memory(base, DPOSettings(lora=None), longest=20, cuda=False)
    assert (whole.weights, whole.reference, whole.gradients, whole.optimiser) == (size, size, size, 2 * size)
    from peft import LoraConfig, get_peft_model

    adapted = estimate_memory(base, DPOSettings(lora=LORA), longest=20, cuda=False)
    trained = get_peft_model(model, LoraConfig(**LORA)).get_nb_trainable_parameters()[0]
    assert (adapted.adapter, adapted.optimiser, adapted.reference) == (4 * trained, 8 * trained, 0)
    anchored = estimate_memory(base, DPOSettings(lora=LORA, start="anchor"), longest=20, cuda=False)
    assert anchored.reference == size
    divided = estimate_memory(base, DPOSettings(lora=None), longest=20, cuda=False, shards=2)
    assert divided.weights == size // 2


def test_what_will_not_fit_is_refused_before_it_starts_with_the_ways_out(base: Path, tmp_path: Path) -> None:
    huge = DPOSettings(lora=None, batch=2**26)
    with pytest.raises(ConfigurationError, match=r"accumulate = 4[\s\S]*max_length[\s\S]*4bit[\s\S]*FSDP"):
        train_upstream(base, pairs(), tmp_path, huge)
    check_memory(estimate_memory(base, replace(huge, batch=8), longest=20, cuda=False), cuda=False)
