"""Two small pretrained checkpoints, in the folder that ALIGNER_TEST_MODELS names."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from aligner_chain.engines.base import Draft, Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.errors import CheckpointError
from aligner_chain.templates import encode, plain_text

MODELS = os.environ.get("ALIGNER_TEST_MODELS")
pytestmark = pytest.mark.skipif(not MODELS, reason="ALIGNER_TEST_MODELS names no folder with stories260K in it")


@pytest.fixture(scope="module")
def stories() -> Any:
    folder = Path(MODELS or "") / "stories260K"
    engine = HuggingFaceEngine(LlamaForCausalLM.from_pretrained(folder), _tokenizer(folder / "tok512.bin"))
    yield engine
    engine.close()


def test_it_decodes_english(stories: HuggingFaceEngine) -> None:
    plain, beginnings = (
        plain_text(stories.tokenizer),
        ["Once upon a time", "The dog was", "One day, a little girl named Lily"],
    )
    asked = [Request(key=text, prompt=(1, *encode(stories.tokenizer, text)), max_new=80) for text in beginnings]
    texts = [plain.decode(ticket.result(60).ids) for ticket in stories.submit(asked)]
    for text in texts:
        words = text.lower().replace(".", " ").replace(",", " ").split()
        assert len(words) > 20
        common = {"the", "a", "to", "and", "was", "she", "he", "it", "with", "her", "his", "they", "in", "of", "very"}
        assert sum(word in common for word in words) > len(words) / 4
    alone = [plain.decode(stories.submit([one])[0].result(60).ids) for one in asked]
    assert texts == alone


def test_it_prefers_english_to_its_reverse(stories: HuggingFaceEngine) -> None:
    def score(text: str) -> float:
        plain = plain_text(stories.tokenizer)
        ids, spans = plain.encode_with_spans(text)
        request = Request(key=text, prompt=(1,), draft=Draft(ids=ids, spans=spans), score_draft=True)
        logprobs = stories.submit([request])[0].result(60).draft_logprobs
        assert logprobs is not None
        return sum(logprobs) / len(logprobs)

    text = "She went to the park with her mom and played with the ball."
    assert score(text) > -2
    assert score(text[::-1]) < -4


def test_a_checkpoint_without_tokenizer_says_so() -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        HuggingFaceEngine.from_pretrained(Path(MODELS or "") / "stories260K")


def test_weights_in_bf16_decode_too() -> None:
    folder = Path(MODELS or "") / "stories260K"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    engine = HuggingFaceEngine(model, _tokenizer(folder / "tok512.bin"))
    prompt = (1, *encode(engine.tokenizer, "Once upon a time"))
    generation = engine.submit([Request(key="", prompt=prompt, max_new=20)])[0].result(60)
    assert "there was a" in plain_text(engine.tokenizer).decode(generation.ids)
    engine.close()


def _tokenizer(path: Path) -> Any:
    """The SentencePiece BPE vocabulary of llama2.c (score, length, bytes of each piece) as a tokenizer."""
    data, position, pieces = path.read_bytes(), 4, []
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        pieces.append((data[position + 8 : position + 8 + length].decode().strip("\n"), score))
        position += 8 + length
    names = ["<unk>", "<s>", "</s>", *(piece.replace(" ", "▁") for piece, _ in pieces[3:])]
    vocab = {name: number for number, name in enumerate(names)}
    # The better a piece's score, the earlier it is merged, from whichever two pieces it consists of.
    by_score = sorted(range(3, len(names)), key=lambda number: -pieces[number][1])
    merges = [
        (names[number][:cut], names[number][cut:])
        for number in by_score
        for cut in range(1, len(names[number]))
        if names[number][:cut] in vocab and names[number][cut:] in vocab
    ]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
