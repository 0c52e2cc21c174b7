"""How fast corrections are decoded, here and on a server: docs/performance.md and docs/serving.md."""

from __future__ import annotations

from collections.abc import Mapping

from cells import between, lines, percent, ratio
from stored import Figures

ONE_ROW = {
    "copy_128_verdict": "approved by a verdict (128 tokens)",
    "copy_128": "copied without a verdict (128 tokens)",
    "edits_1": "one span edited (128)",
    "edits_3": "three spans edited (128)",
    "edits_6": "six spans edited (256)",
    "sentence_deleted": "a sentence deleted",
    "sentence_inserted": "a sentence inserted",
    "rewrite": "written anew (128)",
    "refusal": "a long answer (512) becomes a short refusal",
    "debugbench": "DebugBench Python, recorded fixes",
    "aligner2b": "Aligner-2B, recorded outputs",
    "paradetox": "ParaDetox, recorded rewrites (12 tokens)",
}
MANY_ROWS = {"batch_8_light": "8 rows at once", "callers_32_light": "32 callers, one row each"}
RECORDED = {
    "debugbench_python": "DebugBench Python",
    "aligner2b_recorded": "Aligner-2B on AlpacaEval",
    "gsm8k_solutions": "GSM8K solutions",
    "paradetox": "ParaDetox",
}
OTHERS = ("aligner-chain [95 %]", "without drafts", "prompt lookup", "its best setting")
MODELS = {"tiny": "tiny", "100m": "100 million parameters"}
DRAFTERS = {
    "ngram 8": "n-grams, 8 tokens",
    "ngram 32": "n-grams, 32",
    "answer 16": "`AnswerDrafter`, 16 tokens",
    "answer 48": "`AnswerDrafter`, 48",
}


def one_row(found: Figures) -> list[str]:
    head = ["workload", "edited, %", *OTHERS, "forwards", "pairs"]
    return lines(
        head, [[name, _edited(of), *_beside_lookup(of), str(_ours(of)["pairs"])] for name, of in _known(found, ONE_ROW)]
    )


def large(found: Figures) -> list[str]:
    head = ["workload", *OTHERS, "forwards"]
    return lines(head, [[name, *_beside_lookup(of)] for name, of in _known(found, ONE_ROW)])


def many_rows(found: Figures) -> list[str]:
    head = [
        "workload",
        "edited, %",
        "aligner-chain",
        "the same without drafts",
        "padded `generate`",
        "`generate_batch`",
        "pairs",
    ]
    others = ("aligner_chain_plain", "hf_batch", "hf_generate_batch")
    rows = [
        [name, _edited(of), ratio(_ours(of)["cpu"]), *(_times(of[other]) for other in others), str(_ours(of)["pairs"])]
        for name, of in _known(found, MANY_ROWS)
    ]
    return lines(head, rows)


def _known(found: Figures, names: Mapping[str, str]) -> list[tuple[str, dict[str, Figures]]]:
    """The workloads that were measured, each with the figures of every decoder."""
    known: dict[str, dict[str, Figures]] = {}
    for one in found["figures"]:
        known.setdefault(one["workload"], {})[one["decoder"]] = one
    return [(told, known[name]) for name, told in names.items() if name in known]


def _ours(of: Mapping[str, Figures]) -> Figures:
    return of["aligner_chain"]


def _edited(of: Mapping[str, Figures]) -> str:
    return f"{100 * _ours(of)['edit_ratio']:.0f}"


def _times(one: Figures) -> str:
    return f"{one['cpu']['median']:.2f}"


def _beside_lookup(of: Mapping[str, Figures]) -> list[str]:
    ours = _ours(of)
    others = [_times(of[name]) for name in ("aligner_chain_plain", "hf_prompt_lookup", "hf_prompt_lookup_best")]
    return [ratio(ours["cpu"]), *others, f"{ours['forwards']:.1f} of {ours['output_tokens']:.0f}"]


def replayed(found: Figures) -> list[str]:
    head = ["recorded pairs", "edited, %", "oracle", "fp32: tokens per forward", "speed-up"]
    head += ["bf16: tokens per forward", "speed-up", "flat: tokens per forward", "speed-up with these drafts in fp32"]
    rows = []
    for name, told in RECORDED.items():
        one = found["sets"][name]
        fp32, bf16 = one["fp32"], one["bf16"]
        cells = [f"{100 * fp32['edit_ratio']:.0f}", f"{fp32['oracle_tokens_per_forward']:.2f}"]
        cells += [_per_forward(fp32), f"{fp32['speed_pooled']:.2f}", _per_forward(bf16), f"{bf16['speed_pooled']:.2f}"]
        rows.append([told, *cells, _per_forward(one["flat"]), f"{one['flat']['speed_on_fp32']:.2f}"])
    return lines(head, rows)


def _per_forward(one: Figures) -> str:
    return f"{one['tokens_per_forward']:.2f} ({one['ratio']:.2f} {between(one['ratio_95'])})"


def overlapped(tiny: Figures, large: Figures) -> list[str]:
    head = ["model, fp32", "approved by a verdict, with overlap", "without", "times sooner"]
    head += ["first token without a verdict, times sooner", "answers"]
    rows = []
    for one in (tiny, large):
        approved, first = one["approved"], one["first_token"]
        told = (*(approved[name] for name in ("overlap_steps", "alone_steps", "times_sooner")), first["times_sooner"])
        rows.append([MODELS[one["model"]], *(f"{value:.1f}" for value in told), str(approved["answers"])])
    return lines(head, rows)


def beside_vllm(found: Figures) -> list[str]:
    columns = [{one["decoder"]: one for one in workload["decoders"]} for workload in found["workloads"]]
    alone, corrected, batch = found["workloads"]
    head = [
        "",
        "approved by a verdict",
        f"corrected, {percent(corrected['edit_ratio'], 0)} edited",
        f"{batch['rows']} at once, {percent(batch['edit_ratio'], 0)} edited",
    ]
    rows = [["cases", *(str(workload["cases"]) for workload in (alone, corrected, batch))]]
    for label, decoder, measure in PEERS:
        rows.append([label, *(ratio(of[decoder][measure]) if decoder in of else "-" for of in columns)])
    return lines(head, rows)


PEERS = (
    ("aligner-chain", "aligner_chain", "wall"),
    ("prompt lookup, default", "hf_prompt_lookup", "wall"),
    ("prompt lookup, best", "hf_prompt_lookup_best", "wall"),
    ("`generate_batch`", "hf_generate_batch", "wall"),
    ("vLLM", "vllm", "wall"),
    ("vLLM, n-grams of 8", "vllm_ngram", "wall"),
    ("vLLM, n-grams, best", "vllm_ngram_best", "wall"),
    ("aligner-chain against vLLM", "vllm", "ours_faster_wall"),
    ("aligner-chain against vLLM with n-grams, best", "vllm_ngram_best", "ours_faster_wall"),
)
"""Rows beside vLLM: the decoder, and which of its ratios."""


def drafts_on_vllm(found: Figures) -> list[str]:
    rows = []
    for workload in found["workloads"]:
        of = {one["decoder"]: one for one in workload["decoders"]}
        plain = f"{of['plain']['forwards']} forwards"
        rows.append([str(workload["at_once"]), plain, *(_drafted(of[name]) for name in DRAFTERS)])
    return lines(["at a time", "plain", *DRAFTERS.values()], rows)


def _drafted(one: Figures) -> str:
    cpu = one["speedup_cpu"]
    return f"{cpu['median']:.2f} ({cpu['least']:.2f} to {cpu['most']:.2f}), {one['forwards']}"


def warmed(found: Figures) -> list[str]:
    rows = [
        [every if int(every) else "0 (no warming)", f"{one['end_s']:.2f}", f"{one['read']:,.0f}", f"{one['ahead']:.0f}"]
        for every, one in found["by_every"].items()
    ]
    return lines(["`warm_every`", "end of the answer to the first token, s", "tokens read", "requests ahead"], rows)
