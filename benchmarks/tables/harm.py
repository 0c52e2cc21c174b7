"""Whether correcting does harm: docs/quality.md."""

from __future__ import annotations

from cells import between, lines, percent, share
from stored import Figures

DESK = {"upstream": "the upstream", "generated": "generated faults"}
SERVED = {"keep_all": "keep all", "checks": "checks", "serve_all": "serve all"}
REPAIRS = {
    "debugbench_python": "DebugBench Python, recorded fixes",
    "desk": "support desk",
    "desk, passages": "support desk with passages",
    "desk, citation marks": "the same with citation marks",
}
WAYS = {
    "always, plain": "always corrected, plain",
    "always, drafts": "always corrected, with drafts",
    "verdict alone, as it came": "verdict alone (threshold {:g})",
    "verdict alone, calibrated": "verdict alone, calibrated",
    "verdict or draft, as it came": "`leave` (threshold {:g}, as the demo has it)",
    "verdict or draft, calibrated": "`leave`, calibrated",
    "no verdict: always, drafts": "without a verdict, with drafts",
    "no verdict: copy score": "without a verdict, copy score, calibrated",
    "classifier, then Aligner": "a trained inspector in front, then the Aligner",
}


def checked(found: Figures) -> list[str]:
    one = found["sets"]["aligner2b_recorded"]
    rows = []
    for name, told in SERVED.items():
        policy = one["policies"][name]
        lost = [str(policy["lost"][what]) for what in ("code", "links", "json")]
        rows.append([told, f"{policy['served']:,} ({percent(policy['served'] / one['total'])})", *lost])
    head = [f"of {one['total']:,}", "served", "lost all or a block of code", "lost a link", "JSON no longer JSON"]
    return lines(head, rows)


def repairs(found: Figures) -> list[str]:
    rows = []
    for name, told in REPAIRS.items():
        one = found["sets"][name]
        as_written = one["outcomes"].get("corrected", 0) - one["restored"]
        rows.append([told, f"{one['total']:,}", f"{as_written:,}"])
    return lines(["right corrections", "counted", "served as they were written"], rows)


def desk(found: Figures) -> list[str]:
    rows = []
    for name, told in DESK.items():
        one = found[name]["default checks"]
        kept, changed, fixed = (one[of] for of in ("right_kept", "wrong_changed", "wrong_fixed"))
        cells = [_share(kept), percent(changed["share"]), _share(fixed), _auc(one["auc"])]
        rows.append([f"{told} ({kept['n']:,} and {changed['n']:,})", *cells])
    return lines(["answers of", "right, kept", "wrong, changed", "wrong, now fully right", "AUC of `leave`"], rows)


def gate(found: Figures) -> list[str]:
    any_way = found["ways"]["always, plain"]
    right, wrong = any_way["right_changed"]["n"], any_way["wrong_fixed"]["n"]
    head = ["", "forwards", "tokens decoded", "CPU ms", "calls of the Aligner"]
    head += [f"right changed (of {right})", f"wrong fixed (of {wrong})", "wrong missed"]
    return lines(head, [_way(told, found["ways"][name]) for name, told in WAYS.items()])


def _way(told: str, one: Figures) -> list[str]:
    spent = [f"{one[of]:.1f}" for of in ("forwards", "new_tokens", "cpu_ms")]
    missed = "-" if one["wrong_missed"] is None else str(one["wrong_missed"]["k"])
    counts = [f"{one['called']['k']:,}", str(one["right_changed"]["k"]), str(one["wrong_fixed"]["k"])]
    return [told.format(one["threshold"]), *spent, *counts, missed]


def real(paradetox: Figures, gsm8k: Figures) -> list[str]:
    head = ["", "right, kept", "wrong, changed", "wrong, now right", "failed", "AUC of the score"]
    names = "ParaDetox: {:,} neutral and {:,} rude sentences", "GSM8K: {:,} right and {:,} wrong solutions"
    rows = []
    for name, one in zip(names, (paradetox["dev"], gsm8k["dev"]), strict=True):
        rows += [_corrected(name, one["default checks"]), _copied(one["copy only"])]
    return lines(head, rows)


def _corrected(name: str, one: Figures) -> list[str]:
    n_right, n_wrong = one["right_kept"]["n"], one["wrong_changed"]["n"]
    failed = sum(counts.get("failed", 0) for counts in one["outcomes"].values())
    shares = [_share(one[of]) for of in ("right_kept", "wrong_changed", "wrong_fixed")]
    return [name.format(n_right, n_wrong), *shares, f"{failed} of {n_right + n_wrong:,}", _auc(one["auc"])]


def _copied(one: Figures) -> list[str]:
    """By what copying is, so without intervals; nothing of it can fail."""
    changed = [str(one[of]["k"]) for of in ("wrong_changed", "wrong_fixed")]
    return ["copying", percent(one["right_kept"]["share"], 0), *changed, "0", f"{one['auc']['value']:g}"]


def strength(desk: Figures, paradetox: Figures) -> list[str]:
    head = ["", "strength", "answers changed", "wrong fixed", "at random, as many words"]
    head += ["at random, as many answers", "right changed", "at random, as many words"]
    rows = []
    for name, found in (("desk", desk), ("ParaDetox", paradetox)):
        shown = [one for one in found["rows"] if one["strength"]]
        rows += [[name if at == 0 else "", *_strong(one)] for at, one in enumerate(shown)]
    return lines(head, rows)


def _strong(one: Figures) -> list[str]:
    words, answers = (one["at_random"][f"as many {unit}"] for unit in ("words", "answers"))
    changed = one["right_changed"]
    return [
        f"{one['strength']:g}",
        str(one["changed"]["k"]),
        _share(one["wrong_fixed"]),
        *(share(drawn["wrong_fixed"]["mean"], drawn["wrong_fixed"]["interval_95"]) for drawn in (words, answers)),
        f"{changed['k']} of {changed['n']} ({percent(changed['share'])})",
        share(words["right_changed"]["mean"], words["right_changed"]["interval_95"]),
    ]


def _share(one: Figures) -> str:
    return share(one["share"], one["interval_95"])


def _auc(one: Figures) -> str:
    return f"{one['value']:.3f} {between(one['interval_95'], digits=3)}"
