"""The benchmark of decoders: what it forces is written by every decoder, and its arithmetic is right."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aligner_chain.bench import replays, workloads
from aligner_chain.bench.decoders import BareForwards, ContinuousBatching, Generate, GenerateBatch, Ours
from aligner_chain.bench.forcing import Forcing
from aligner_chain.bench.measure import Sample, interval_95, measure, ratio, sample
from aligner_chain.bench.models import new_tokenizer, twin
from aligner_chain.bench.report import described, table
from aligner_chain.bench.workloads import EOS, Case, Row, Workload, Writer, edit_ratio, edited, row, synthetic
from aligner_chain.cli import main

KEYS = {
    *("workload", "decoder", "speedup_vs_hf_generate", "forwards", "tokens_per_forward", "identical_to_greedy"),
    *("edit_ratio", "cpu", "wall", "speedup_vs", "pairs", "model", "dtype", "prompt_tokens", "output_tokens"),
    *("fed_tokens", "machine", "versions", "seed", "settings", "threads", "note", "rows", "parameters"),
}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=workloads.VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ours(model: Any) -> Iterator[Callable[..., Ours]]:
    made: list[Ours] = []

    def make(*, draft: bool = True, verdict: bool = False, callers: bool = False) -> Ours:
        made.append(Ours("aligner_chain", model, new_tokenizer(), draft=draft, verdict=verdict, callers=callers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def small(rows: int = 1, length: int = 24) -> Case:
    """Rows of different lengths with one edit each."""
    case = []
    for number in range(rows):
        random = Random(number)
        writer = Writer(random, number, rows)
        answer = writer.text(length + number)
        case.append(row(writer.tokens(5), answer, edited(answer, 1, writer, random), number))
    return tuple(case)


def corrections(case: Case) -> list[tuple[int, ...]]:
    return [one.correction for one in case]


def test_every_decoder_of_one_row_writes_what_is_forced(model: Any, ours: Callable[..., Ours]) -> None:
    case = small()
    lookup = Generate("hf_prompt_lookup", model, prompt_lookup_num_tokens=10)
    for decoder in (Generate("hf_generate", model), lookup, ours(), ours(draft=False)):
        assert list(sample(decoder, case).written) == corrections(case), decoder.name


def test_every_decoder_of_many_rows_writes_what_is_forced(model: Any, ours: Callable[..., Ours]) -> None:
    case = small(4)
    batched = GenerateBatch("hf_batch", model), ContinuousBatching("hf_generate_batch", model)
    for decoder in (Generate("hf_generate", model), *batched, ours(), ours(callers=True)):
        assert list(sample(decoder, case).written) == corrections(case), decoder.name


def test_one_token_a_forward_without_drafts(model: Any) -> None:
    case = small()
    done = sample(Generate("hf_generate", model), case)
    assert done.forwards == len(case[0].correction) + 1  # EOS has a forward too
    assert done.fed == len(case[0].prompt) + len(case[0].correction)


def test_a_verdict_serves_the_answer_after_one_forward(ours: Callable[..., Ours]) -> None:
    case = small()
    decoder = ours(verdict=True)
    sample(decoder, case)  # the first time the engine also measures what a forward costs
    done = sample(decoder, case)
    assert list(done.written) == [case[0].answer]
    assert done.forwards == 1


def test_behind_a_wrong_token_nothing_is_forced(model: Any) -> None:
    """A decoder cannot learn from a rejected place how the output goes on."""
    forced = twin(model)
    Forcing(forced, 512).prescribe([Row(prompt=(32, 500, 96), answer=(), correction=(600, 700), spans=())])
    ids = torch.tensor([[32, 500, 96, 601, 700]])
    with torch.no_grad():
        logits = forced(
            input_ids=ids, position_ids=torch.arange(5)[None], logits_to_keep=torch.tensor([2, 3, 4])
        ).logits
        plain = model(input_ids=ids).logits[:, 2:]
    assert (logits - plain > 1).nonzero().tolist() == [[0, 0, 600], [0, 2, EOS]]


def test_packed_rows_are_told_apart_by_their_tokens(model: Any) -> None:
    """Two rows of the same positions in one packed forward, where each token says its row."""
    forced = twin(model)
    forcing = Forcing(forced, 512)
    rows = [Row(prompt=(160 + b, 200 + b), answer=(), correction=(300 + b,), spans=()) for b in range(2)]
    forcing.prescribe(rows)
    ids, positions = torch.tensor([[160, 200, 161, 201]]), torch.tensor([[0, 1, 0, 1]])
    with torch.no_grad():
        kept = torch.tensor([1, 3])
        best = forced(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=kept).logits.argmax(-1)
    assert best.tolist() == [[300, 301]]
    assert forcing.counts.calls == [(4, 0, 2)]


def test_bare_forwards_repeat_the_shapes(model: Any, ours: Callable[..., Ours]) -> None:
    case, decoder = small(), ours()
    sample(decoder, case)
    sample(decoder, case)
    bare = BareForwards(decoder, model)
    assert sample(bare, case).fed == decoder.forcing.counts.fed
    assert bare.forcing.counts.calls == decoder.forcing.counts.calls


@pytest.mark.parametrize(
    ("answer", "correction", "edits"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 0),
        ((1, 2, 3, 4), (1, 9, 3, 4), 1),
        ((1, 2, 3, 4), (1, 3, 4, 5), 2),  # one deleted, one inserted
        ((1, 2), (7, 8, 9), 3),
    ],
)
def test_edits_are_the_least_that_lead_to_the_correction(
    answer: tuple[int, ...], correction: tuple[int, ...], edits: int
) -> None:
    assert workloads.distance(answer, correction) == workloads.distance(correction, answer) == edits
    one = row((), answer, correction)
    assert edit_ratio((one,)) == edits / max(len(answer), len(correction))


def test_the_edit_ratio_of_several_rows_weighs_long_ones_more() -> None:
    assert edit_ratio((row((), (1, 2, 3), (1, 2, 3)), row((), (1,), (2,)))) == 1 / 4


def test_the_interval_drops_what_chance_allows() -> None:
    """P(X <= 3) of a binomial (15, 1/2) is 1.76 %, P(X <= 4) is 5.9 %: the fourth value from either end."""
    assert interval_95(range(15, 0, -1)) == (4, 12)
    assert interval_95(range(6)) == (0, 5)  # P(X = 0) is 1.6 %
    assert interval_95(range(5)) is None  # 3.1 %


def test_the_ratio_is_taken_pair_by_pair() -> None:
    found = ratio([2.0, 9.0, 4.0], [1.0, 3.0, 8.0])
    assert (found.median, found.pooled, found.interval_95) == (2.0, 15 / 12, None)


@pytest.mark.parametrize("name", workloads.SYNTHETIC)
def test_a_workload_is_the_same_for_the_same_seed(name: str) -> None:
    assert synthetic(name, 1, seed=3) == synthetic(name, 1, seed=3)
    assert synthetic(name, 1, seed=3).cases[0] != synthetic(name, 1, seed=4).cases[0]


def test_every_token_of_a_row_says_which_row_it_is() -> None:
    [case] = synthetic("batch_8_light", 1, seed=0).cases
    for number, one in enumerate(case):
        assert {token % 8 for token in (*one.prompt, *one.correction)} == {number}
        assert 100 <= len(one.prompt) <= 200


@pytest.mark.parametrize(("name", "spans"), [("edits_1", 1), ("edits_3", 3), ("edits_6", 6)])
def test_edits_stand_where_they_are_counted(name: str, spans: int) -> None:
    for case in synthetic(name, 5, seed=1).cases:
        edits = workloads.distance(case[0].answer, case[0].correction)
        assert spans <= edits <= 4 * spans


def test_copies_have_no_edits_and_rewrites_nothing_else() -> None:
    for name, expected in (("copy_128", 0), ("rewrite", 1), ("refusal", 1)):
        assert edit_ratio(synthetic(name, 1, seed=0).cases[0]) == expected
    [[refused]] = synthetic("refusal", 1, seed=0).cases
    assert (len(refused.answer), len(refused.correction)) == (512, 20)
    assert not {*refused.correction} & {*refused.prompt}


def test_spans_cover_the_answer() -> None:
    [one] = small()
    assert one.spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(one.spans))


class Waiting:
    """A decoder that only counts; its forcing is never asked for anything but counts."""

    warm_up = 2

    def __init__(self, name: str, written: tuple[int, ...]) -> None:
        self.settings: dict[str, int] = {}
        self.name, self.forcing, self._written = name, Forcing(torch.nn.Identity(), 64), written
        self.prepared: list[Case] = []

    def prepare(self, case: Case) -> None:
        self.prepared.append(case)
        self.forcing.prescribe(case)

    def decode(self, case: Case) -> list[tuple[int, ...]]:
        self.forcing.counts.forwards = 2
        return [self._written for _ in case]

    def close(self) -> None:
        pass


def test_decoders_take_turns_on_the_same_case() -> None:
    heard: list[str] = []
    work = Workload(name="w", cases=(small(length=25), small(length=26)), warm_up=(small(), small()))
    decoders = [Waiting("a", ()), Waiting("b", ())]
    samples = measure(work, decoders, 5, heard.append)
    assert [one.prepared for one in decoders] == [[*work.warm_up, *work.cases]] * 2
    assert [text.rpartition(" ")[2] for text in heard if "pair" in text] == ["a", "b", "a", "b"]  # each case once
    assert [len(several) for several in samples.values()] == [2, 2]


def test_an_object_says_whether_the_output_is_that_of_greedy_decoding() -> None:
    work = Workload(name="w", cases=(small(), small()), warm_up=(small(),))
    made = {name: Sample(cpu_s=cpu, wall_s=1, forwards=5, fed=9, written=written) for name, cpu, written in (
        ("hf_generate", 3.0, ((1,),)), ("aligner_chain", 1.0, ((1,),)), ("wrong", 2.0, ((2,),)))}  # fmt: skip
    decoders = [Waiting(name, ()) for name in made]
    objects = list(described(work, decoders, {name: [one, one] for name, one in made.items()}, drafting_ms=0.5))
    assert [one["identical_to_greedy"] for one in objects] == [True, True, False]
    assert [one["speedup_vs_hf_generate"] for one in objects] == [1, 3, 1.5]
    assert objects[1]["speedup_vs"] == {"hf_generate": 3, "wrong": 2}
    assert objects[0]["tokens_per_forward"] == (len(small()[0].correction) + 1) / 5
    assert "NO" in list(table(objects))[3]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    folder = tmp_path / "debugbench_python"
    folder.mkdir()
    pairs = [
        {"question": "add", "answer": f"return a - b  # {number} <|2|>", "correction": f"return a + b  # {number}"}
        for number in range(30)
    ]
    for part in ("train", "dev"):
        lines = "".join(json.dumps(one) + "\n" for one in pairs)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_recorded_pairs_are_sampled_and_hold_no_token_of_the_frame(recorded: Path) -> None:
    folder = replays.find("debugbench", recorded)
    assert folder is not None
    work = replays.replay("debugbench", folder, seed=0)
    assert len(work.cases) == replays.ROWS
    for [one] in (*work.warm_up, *work.cases):
        assert min(*one.answer, *one.correction) >= workloads.FIRST
        assert len(one.spans) == len(one.answer)
    assert work.tokenizer.eos_token_id == EOS


def test_the_command_prints_an_object_for_each_decoder(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--workload", "debugbench", "coach", "--pairs", "2", "--data", str(recorded)]
    assert main(["bench", "decode", "--quick", "--json", *asked]) == 0
    printed = capsys.readouterr()
    objects = [json.loads(line) for line in printed.out.splitlines()]
    hugging_face = ["hf_generate", "hf_prompt_lookup", "hf_prompt_lookup_best"]
    assert [one["decoder"] for one in objects] == [*hugging_face, "aligner_chain", "aligner_chain_plain"]
    assert all(one.keys() >= KEYS for one in objects)
    assert all(one["identical_to_greedy"] for one in objects)
    assert "coach is left out" in printed.err
    assert str(recorded) not in printed.out


def test_the_table_has_a_line_for_each_decoder(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--workload", "debugbench", "--pairs", "1", "--data", str(recorded)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["workload", "decoder", "speed-up"]
    assert all(line.endswith("yes") for line in lines)
    assert len(lines) == 5


@pytest.mark.parametrize("option", [["--pairs", "0"], ["--workload", "none"], ["--model", "huge"]])
def test_wrong_options_are_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["bench", "decode", *option])
    assert refused.value.code == 2


def test_a_folder_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "decode", "--workload", "debugbench", "--data", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_benchmark_of_overlap_measures_both_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses what no user does, and once stood still for that."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    overlap = importlib.import_module("overlap")
    setting = overlap.Setting("tiny", "float32")
    found = overlap.measured(setting, 2)
    setting.engine.close()
    assert {name: one["answers"] for name, one in found.items()} == {"approved": 2, "first_token": 2}
    assert all(one[key] > 0 for one in found.values() for key in ("overlap_steps", "alone_steps", "times_sooner"))
