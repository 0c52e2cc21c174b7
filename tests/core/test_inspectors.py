"""Inspectors: functions, classifiers made on the spot, one that learns, and several as one."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.calibration import auc
from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.inspectors import (
    AllInspectors,
    CallableInspector,
    ClassifierInspector,
    TrainedInspector,
    passes,
    worst,
)
from aligner_chain.inspectors.classifier import BATCH
from aligner_chain.inspectors.trained import SIZE, features

ASKED = Exchange.of("is it free ?", "no")
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "is", "it", "free", "?", "yes", "no", "[", "]", "SEP")
WINDOW = 12

# --- functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "scores"),
    [
        (0.25, {"ok": 0.25}),
        (True, {"ok": 1.0}),
        (False, {"ok": 0.0}),
        (Fraction(1, 2), {"ok": 0.5}),
        ({"true": 0.5, "kind": True}, {"true": 0.5, "kind": 1.0}),
        ({}, {}),
    ],
)
def test_what_a_function_says_becomes_scores(returned: Any, scores: dict[str, float]) -> None:
    assert CallableInspector(lambda _: returned).inspect([ASKED, ASKED]) == [scores, scores]


def test_a_function_sees_each_exchange_and_its_criterion_has_a_name() -> None:
    inspector = CallableInspector(lambda one: one.answer == "yes", criterion="agrees")
    scores = inspector.inspect([ASKED, Exchange.of("?", "yes")])
    assert scores == [{"agrees": 0.0}, {"agrees": 1.0}]
    assert inspector.inspect([]) == []


@pytest.mark.parametrize("returned", [1.5, -0.1, math.nan, math.inf, None, "0.5", {"true": 2}, [0.5]])
def test_what_is_no_probability_is_named(returned: Any) -> None:
    def rate(exchange: Exchange) -> Any:
        return returned

    with pytest.raises(ConfigurationError, match=r"function rate of a CallableInspector returned .* no probability"):
        CallableInspector(rate).inspect([ASKED])


def test_what_a_function_raises_is_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        CallableInspector(lambda _: 1 / 0).inspect([ASKED])


# --- several ------------------------------------------------------------------------------------------------------


def test_several_inspectors_are_one() -> None:
    first, second = CallableInspector(lambda _: {"true": 0.2, "kind": 0.9}), CallableInspector(lambda _: 0.5)
    assert AllInspectors(first, second).inspect([ASKED]) == [{"true": 0.2, "kind": 0.9, "ok": 0.5}]


def test_a_criterion_is_given_once() -> None:
    both = AllInspectors(CallableInspector(lambda _: 0.5), CallableInspector(lambda _: 0.7))
    with pytest.raises(ConfigurationError, match="both give the criterion 'ok'"):
        both.inspect([ASKED])
    with pytest.raises(ConfigurationError, match="empty"):
        AllInspectors()


@given(st.dictionaries(st.text(), st.floats(0, 1), min_size=1))
def test_the_worst_is_the_lowest(scores: dict[str, float]) -> None:
    name, score = worst(scores)
    assert scores[name] == score == min(scores.values())


def test_there_is_no_worst_of_nothing() -> None:
    with pytest.raises(ConfigurationError, match="no score"):
        worst({})


@pytest.mark.parametrize(
    ("scores", "thresholds", "passed"),
    [
        ({"keep": 0.9}, {"keep": 0.8}, True),
        ({"keep": 0.8}, {"keep": 0.8}, False),
        ({"keep": 0.9}, {"keep": None}, False),
        ({"keep": 0.9}, {}, False),
        ({"keep": 0.9, "kind": 0.3}, {"keep": 0.8, "kind": 0.5}, False),
        ({"keep": 0.9, "kind": 0.6}, {"keep": 0.8, "kind": 0.5, "other": 0.9}, True),
        ({}, {"keep": 0.8}, False),
    ],
)
def test_an_answer_passes_where_every_score_is_above_its_threshold(
    scores: dict[str, float], thresholds: dict[str, float | None], passed: bool
) -> None:
    assert passes(scores, thresholds) is passed


# --- classifiers --------------------------------------------------------------------------------------------------


@pytest.fixture
def words() -> Any:
    """A BERT-like tokenizer of `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


def bert(labels: Sequence[str], kind: str | None = None) -> Any:
    """A random classifier whose logits are far apart."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=WINDOW,
                initializer_range=0.5,
                id2label=dict(enumerate(labels)),
                label2id={label: number for number, label in enumerate(labels)},
                problem_type=kind,
            )
        )


def logits(model: Any, words: Any, *texts: str) -> list[float]:
    """The slow obvious way: one answer, the tokenizer itself, no padding."""
    with torch.no_grad():
        values: list[float] = model.eval()(**words(*texts, return_tensors="pt")).logits[0].double().tolist()
    return values


def test_exclusive_labels_give_the_probability_of_the_good_ones(words: Any) -> None:
    model = bert(("toxic", "rude", "fine"))
    parts = [math.exp(value) for value in logits(model, words, "is it free ?", "no")]
    [scores] = ClassifierInspector(model, words, ok="fine", criterion="kind").inspect([ASKED])
    assert scores == {"kind": pytest.approx(parts[2] / sum(parts))}
    [scores] = ClassifierInspector(model, words, ok=["rude", "fine"]).inspect([ASKED])
    assert scores == {"ok": pytest.approx((parts[1] + parts[2]) / sum(parts))}
    assert ClassifierInspector(model, words, bad="toxic").inspect([ASKED]) == [scores]


def test_independent_labels_give_a_criterion_each(words: Any) -> None:
    model = bert(("toxic", "helpful", "long"), "multi_label_classification")
    toxic, helpful, _ = (1 / (1 + math.exp(-value)) for value in logits(model, words, "is it free ?", "no"))
    [scores] = ClassifierInspector(model, words, ok="helpful", bad="toxic").inspect([ASKED])
    assert scores == {"helpful": pytest.approx(helpful), "toxic": pytest.approx(1 - toxic)}
    model.config.problem_type = None
    assert ClassifierInspector(model, words, ok="helpful", bad=["toxic"], multi_label=True).inspect([ASKED]) == [scores]


def test_a_yes_or_no_of_one_label(words: Any) -> None:
    model = bert(("toxic",))
    with pytest.raises(ConfigurationError, match="single score"):
        ClassifierInspector(model, words, bad="toxic")
    [value] = logits(model, words, "is it free ?", "no")
    [scores] = ClassifierInspector(model, words, bad="toxic", multi_label=True).inspect([ASKED])
    assert scores == {"toxic": pytest.approx(1 / (1 + math.exp(value)))}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"ok": "good"}, "no label 'good'. Its labels are 'toxic', 'fine'"),
        ({}, "mean that an answer is all right"),
        ({"ok": "fine", "bad": "toxic"}, "both only where labels are independent"),
        ({"ok": "fine", "bad": "fine", "multi_label": True}, "none in both"),
    ],
)
def test_labels_that_do_not_fit_are_named(words: Any, chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        ClassifierInspector(bert(("toxic", "fine")), words, **chosen)
    assert said in str(refused.value)


def test_a_regression_is_no_classifier(words: Any) -> None:
    with pytest.raises(ConfigurationError, match="single score"):
        ClassifierInspector(bert(("score", "other"), "regression"), words, ok="score")


def test_in_a_batch_each_answer_has_the_score_that_it_has_alone(words: Any) -> None:
    inspector = ClassifierInspector(bert(("bad", "good")), words, ok="good")
    exchanges = [Exchange.of("is it " * (n % 3), "yes " * (n % 4) + "no") for n in range(2 * BATCH + 3)]
    alone = [inspector.inspect([exchange])[0]["ok"] for exchange in exchanges]
    assert [one["ok"] for one in inspector.inspect(exchanges)] == pytest.approx(alone, abs=1e-6)
    assert inspector.inspect([]) == []


def test_no_text_spells_a_special_token(words: Any) -> None:
    seen: list[Any] = []
    model = bert(("bad", "good"))
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    ClassifierInspector(model, words, ok="good").inspect([Exchange.of("is it ?", "no [SEP] yes")])
    [inputs] = seen
    spelt = [WORDS[token] for token in inputs["input_ids"][0]]
    assert spelt == ["[CLS]", "is", "it", "?", "[SEP]", "no", "[", "SEP", "]", "yes", "[SEP]"]
    assert inputs["token_type_ids"][0].tolist() == [0] * 5 + [1] * 6


def test_the_longer_text_is_cut(words: Any) -> None:
    inspector = ClassifierInspector(bert(("bad", "good")), words, ok="good")
    assert inspector.inspect([Exchange.of("is it ?", "yes " * 50)]) == inspector.inspect(
        [Exchange.of("is it ?", "yes " * 6)]
    )
    assert len(inspector._backend.encode("is it ?", "yes " * 50).ids) == WINDOW
    shorter = ClassifierInspector(inspector.model, words, ok="good", max_tokens=8)
    assert len(shorter._backend.encode("is it ?", "yes " * 50).ids) == 8


def test_a_classifier_may_read_something_else(words: Any) -> None:
    model = bert(("bad", "good"))
    inspector = ClassifierInspector(model, words, ok="good", texts=lambda exchange: exchange.answer)
    parts = [math.exp(value) for value in logits(model, words, "no")]
    assert inspector.inspect([ASKED]) == [{"ok": pytest.approx(parts[1] / sum(parts))}]


def test_threads_share_a_classifier(words: Any) -> None:
    inspector = ClassifierInspector(bert(("bad", "good")), words, ok="good")
    exchanges = [Exchange.of("is it ?", "yes " * (n % 5) + "no") for n in range(40)]
    alone = [inspector.inspect([exchange]) for exchange in exchanges]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: inspector.inspect([one]), exchanges)) == alone
    assert copy.deepcopy(inspector) is inspector


def test_scores_that_overflow_are_said(words: Any) -> None:
    model = bert(("bad", "good"))
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    with pytest.raises(ConfigurationError, match=r'no finite numbers in torch\.float32\. Load it with dtype="float32"'):
        ClassifierInspector(model, words, ok="good").inspect([ASKED])


def test_a_tokenizer_without_padding_is_refused(words: Any) -> None:
    words.pad_token = None
    with pytest.raises(CheckpointError, match="padding token"):
        ClassifierInspector(bert(("bad", "good")), words, ok="good")


def test_a_classifier_from_its_folder(words: Any, tmp_path: Path) -> None:
    model = bert(("bad", "good"))
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    loaded = ClassifierInspector.from_pretrained(tmp_path, ok="good", criterion="kind")
    assert loaded.inspect([ASKED]) == ClassifierInspector(model, words, ok="good", criterion="kind").inspect([ASKED])


def test_a_model_without_a_trained_head_is_refused(words: Any, tmp_path: Path) -> None:
    bert(("bad", "good")).bert.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no trained sequence classifier: it lacks classifier\.bias"):
        ClassifierInspector.from_pretrained(tmp_path, ok="LABEL_1")


def test_pickled_weights_and_missing_folders_are_refused(words: Any, tmp_path: Path) -> None:
    model = bert(("bad", "good"))
    model.config.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights and remote code are not loaded"):
        ClassifierInspector.from_pretrained(tmp_path, ok="good")
    with pytest.raises(CheckpointError, match="no model folder"):
        ClassifierInspector.from_pretrained(tmp_path / "none", ok="good")


# --- one that learns ----------------------------------------------------------------------------------------------

DAYS = {"kettle": 30, "laptop": 14, "jacket": 60, "novel": 45}


def desk(number: int, seed: int) -> tuple[list[Exchange], list[bool]]:
    """Answers that name the days of a product: right or wrong only by the question, half of them right."""
    rng = random.Random(seed)
    products = [rng.choice(list(DAYS)) for _ in range(number)]
    said = [rng.choice([product, rng.choice(list(DAYS))]) for product in products]
    exchanges = [
        Exchange.of(
            f"May I return the {product} of order {rng.randrange(999)}?",
            f"You have {DAYS[other]} days. Case {rng.randrange(999)}.",
        )
        for product, other in zip(products, said, strict=True)
    ]
    return exchanges, [product == other for product, other in zip(products, said, strict=True)]


@pytest.fixture(scope="module")
def trained() -> TrainedInspector:
    return TrainedInspector.train(*desk(400, seed=0), criterion="days")


def test_what_it_learnt_holds_for_other_answers(trained: TrainedInspector) -> None:
    exchanges, ok = desk(300, seed=1)
    scores = [one["days"] for one in trained.inspect(exchanges)]
    good, bad = ([score for score, fine in zip(scores, ok, strict=True) if fine is kind] for kind in (True, False))
    assert auc(good, bad)[0] > 0.97


def test_the_same_answers_give_the_same_inspector(trained: TrainedInspector) -> None:
    again = TrainedInspector.train(*desk(400, seed=0), criterion="days")
    assert torch.equal(again.weights, trained.weights)
    assert again.bias == trained.bias


def test_a_saved_inspector_says_the_same(trained: TrainedInspector, tmp_path: Path) -> None:
    exchanges, _ = desk(50, seed=2)
    trained.save(tmp_path / "new" / "folder")
    loaded = TrainedInspector.load(tmp_path / "new" / "folder")
    assert loaded.inspect(exchanges) == trained.inspect(exchanges)
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["inspector.safetensors"]


def test_features_are_the_same_in_every_process() -> None:
    told = features(Exchange.of("Is it free?", "No — 3 euros."))
    program = "from aligner_chain.inspectors.trained import features\nfrom aligner_chain.exchange import Exchange\n"
    program += "print(features(Exchange.of('Is it free?', 'No — 3 euros.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == told


@given(st.text(), st.text())
def test_any_text_has_features(question: str, answer: str) -> None:
    found = features(Exchange.of(question, answer))
    assert found == sorted(set(found))
    assert 0 <= found[0] <= found[-1] < SIZE


def test_a_surrogate_is_a_text_too(trained: TrainedInspector) -> None:
    assert 0 <= trained.inspect([Exchange.of("?", "a \ud800 b")])[0]["days"] <= 1


def test_a_long_text_stays_cheap() -> None:
    words = " ".join(str(number) for number in range(5000))
    assert len(features(Exchange.of(words, words))) < 40_000


def test_certain_scores_do_not_overflow() -> None:
    for bias, score in ((5000.0, 1.0), (-5000.0, 0.0)):
        inspector = TrainedInspector(torch.zeros(SIZE), bias)
        assert inspector.inspect([ASKED]) == [{"ok": pytest.approx(score)}]


@pytest.mark.parametrize(
    ("exchanges", "ok", "said"),
    [
        ([ASKED], [True, False], "1 exchanges and 2 labels"),
        ([ASKED] * 2, [True, True], "Of 2 answers 2 are labelled all right"),
        ([ASKED] * 2, [False, False], "Of 2 answers 0"),
        ([], [], "Of 0 answers"),
    ],
)
def test_labels_that_teach_nothing(exchanges: list[Exchange], ok: list[bool], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        TrainedInspector.train(exchanges, ok)


def broken_files(trained: TrainedInspector) -> dict[str, Callable[[Path], None]]:
    from safetensors.torch import save_file

    def written(**changed: Any) -> Callable[[Path], None]:
        tensors = {"weights": changed.get("weights", trained.weights), "bias": changed.get("bias", torch.zeros(1))}
        told = {"schema": "1", "criterion": "ok", **changed.get("told", {})}
        return lambda path: save_file(tensors, path, metadata=told)

    return {
        "No such file": lambda path: None,
        "header": lambda path: path.write_bytes(b"{}"),
        "its schema is '2'": written(told={"schema": "2"}),
        "its weights are not": written(weights=torch.zeros(3)),
        f"not {SIZE} finite numbers": written(weights=torch.full((SIZE,), math.nan)),
        "and a bias": written(bias=torch.tensor([math.inf])),
        "unpack": written(bias=torch.zeros(2)),
    }


def test_what_is_no_inspector_says_the_ways_out(trained: TrainedInspector, tmp_path: Path) -> None:
    for said, write in broken_files(trained).items():
        write(tmp_path / "inspector.safetensors")
        with pytest.raises(CheckpointError, match=r"train and save it anew") as refused:
            TrainedInspector.load(tmp_path)
        assert said.lower() in str(refused.value).lower()


def test_importing_inspectors_loads_no_model() -> None:
    program = "import aligner_chain.inspectors, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "safetensors"}.isdisjoint(done.stdout.split())
