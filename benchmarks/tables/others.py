"""Tables of README.md, docs/privacy.md, docs/proxy.md and docs/training_at_scale.md."""

from __future__ import annotations

from cells import between, lines, percent, share
from stored import Figures

PROXIED = {
    "whole": "whole, approved",
    "streamed": "streamed at 2 ms an event, approved",
    "burst": "streamed in one burst, approved",
    "corrected": "whole, corrected: with diff and checks",
}
METHODS = {"full": "all", "lora": "adapters"}
TRAININGS = {"aligner": "an Aligner (SFT)", "upstream": "an upstream (DPO)"}


def redaction(found: Figures) -> list[str]:
    rows = []
    for part in ("seen", "unseen"):
        one = found[part]["all"]
        counts = [str(one[name]) for name in ("right", "wrong", "missed")]
        rows.append([part, *counts, between(one["precision"]), between(one["recall"])])
    return lines(["part", "right", "wrong", "missed", "precision, 95 %", "recall, 95 %"], rows)


def proxy(found: Figures) -> list[str]:
    head = ["answer", "direct", "proxied", "difference", "range", "added by the proxy: there, back"]
    return lines(
        [*head, "processor time of the proxy", "pairs"], [_proxied(found[name], told) for name, told in PROXIED.items()]
    )


def _proxied(one: Figures, told: str) -> list[str]:
    whole = [f"{one[name]:.2f}" for name in ("direct_ms", "proxied_ms", "overhead_ms")]
    ends = f"{one['p10_of_differences_ms']:.2f} to {one['p90_of_differences_ms']:.2f}"
    return [
        told,
        *whole,
        ends,
        f"{one['there_ms']:.2f}, {one['back_ms']:.2f}",
        f"{one['cpu_ms']:.2f}",
        str(one["pairs"]),
    ]


def memory(found: Figures) -> list[str]:
    rows = [
        [
            f"{one['weights'] / 1e6:.1f}M",
            METHODS[one["method"]],
            str(one["length"]),
            *(f"{one[name]:,}" for name in ("measured_mib", "estimated_mib")),
            f"{one['ratio']:.2f}",
        ]
        for one in found["cases"]
    ]
    return lines(["weights", "", "tokens", "measured MiB", "estimated MiB", "ratio"], rows)


def same_training(found: Figures) -> list[str]:
    rows = [(told, found["kinds"][kind]) for kind, told in TRAININGS.items()]
    rows.append(("what is allowed", found["allowed"]))
    head = ["relative", "first gradient", f"weights after {found['steps']} steps, of the update", "losses"]
    return lines(head, [[told, *(f"{one[of]:g}" for of in ("gradient", "weights", "losses"))] for told, one in rows])


def demo_rag(found: Figures) -> list[str]:
    head = ["seed", "contradictions repaired", "of them unseen products", "right answers kept"]
    head.append("fully right: alone, with the Aligner")
    return lines(head, [[seed, *_repaired(one)] for seed, one in found["runs"].items()])


def _repaired(one: Figures) -> list[str]:
    of = (one["all products"]["repaired"], one["unseen products"]["repaired"], one["right answers"])
    sides = (one["all products"][side]["fully_right"] for side in ("upstream_alone", "with_aligner"))
    told = (f"{share(part['share'], part['interval'])} ({part['k']} of {part['n']})" for part in of)
    return [*told, ", ".join(map(percent, sides))]
