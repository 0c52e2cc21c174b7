"""Who says what is right at the support desk: the policy judges, a flawed verifier confirms, a person annotates.

The verifier is not the judge. It is blind to one criterion and wrong in one case of ten, as a verifier in the reader's
own traffic will be; how good it really was is measured and reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from aligner_chain.exchange import Correction, Exchange
from bootstrap.demo.world import CRITERIA, judge, parse, read_ticket, repair
from bootstrap.judges import Annotation
from bootstrap.measures import Yardstick

BLIND_TO = "answered"
ERROR_RATE = 0.1


def policy(exchanges: Sequence[Exchange]) -> list[Mapping[str, bool]]:
    """The judge: the written policy, exactly."""
    return [judge(read_ticket(exchange), exchange.answer) for exchange in exchanges]


def minimal_repairs(exchanges: Sequence[Exchange]) -> list[str]:
    """The exact minimal repair of each answer, to measure edits against."""
    return [repair(read_ticket(exchange), exchange.answer) for exchange in exchanges]


def annotate(exchanges: Sequence[Exchange]) -> list[Annotation]:
    """The annotator, standing for a person who knows the policy and changes as little as possible."""
    return [
        Annotation(text=text, criteria=tuple(name for name in CRITERIA if not verdict[name]))
        for text, verdict in zip(minimal_repairs(exchanges), policy(exchanges), strict=True)
    ]


def is_garbled(answer: str) -> bool:
    """Whether the world's grammar cannot read the answer."""
    return parse(answer) is None


YARDSTICK = Yardstick(judge=policy, minimal=minimal_repairs, garbled=is_garbled)


class FlawedVerifier:
    """Confirms a correction if its text meets the criteria it can see, and errs in one case of ten.

    Which cases is fixed by `seed` and the text. `confusion` counts (confirmed, really right) for the report.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.confusion = {(said, truth): 0 for said in (True, False) for truth in (True, False)}

    def __call__(self, corrections: Sequence[Correction]) -> list[bool]:
        said = [self._confirms(correction) for correction in corrections]
        for correction, confirmed in zip(corrections, said, strict=True):
            truth = all(judge(read_ticket(correction.exchange), correction.text).values())
            self.confusion[confirmed, truth] += 1
        return said

    def figures(self) -> dict[str, float | int | None]:
        """Precision and recall of the confirmations so far against the policy."""
        hits = self.confusion[True, True]
        confirmed, right = hits + self.confusion[True, False], hits + self.confusion[False, True]
        return {
            "precision": hits / confirmed if confirmed else None,
            "recall": hits / right if right else None,
            "n": sum(self.confusion.values()),
        }

    def _confirms(self, correction: Correction) -> bool:
        verdict = judge(read_ticket(correction.exchange), correction.text)
        seems_right = all(met for name, met in verdict.items() if name != BLIND_TO)
        text = f"{self.seed}\0{correction.exchange.question}\0{correction.text}"
        errs = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32 < ERROR_RATE
        return seems_right != errs
