"""What a corrector makes of rude sentences and of neutral ones, with copying, deleting and people beside it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence

import rude
from programs import both_policies, outcomes
from report import DRAWS, Figures, middle, share

from aligner_chain import Aligner, Exchange, Turn


def measure(aligner: Aligner, known: rude.Rewrites, lexicon: frozenset[str], question: str) -> Figures:
    """The Aligner under the policy as it is by default and without checks; one output for each distinct sentence."""
    turns = (Turn(role="user", text=question),)
    served = both_policies(aligner, [Exchange(turns=turns, answer=text) for text in asked(known)])
    return {
        name: row({one.exchange.answer: one.text for one in corrections}, known, lexicon) | outcomes(corrections)
        for name, corrections in served.items()
    }


def asked(known: rude.Rewrites) -> list[str]:
    """Every text that a corrector is measured on: the rude sentences, and the neutral ones with capitals and without."""
    neutral = rude.neutral(known)
    return list(dict.fromkeys([*known, *neutral, *(text.lower() for text in neutral)]))


def baselines(known: rude.Rewrites, lexicon: frozenset[str]) -> Figures:
    """Copying, deleting the lexicon's words, and what people wrote: each rewrite against the others of its sentence."""
    several = [rewrites for rewrites in known.values() if len(rewrites) > 1]
    others = [(one, [*some[:at], *some[at + 1 :]]) for some in several for at, one in enumerate(some)]
    texts = asked(known)
    return {
        "copying": row({text: text for text in texts}, known, lexicon),
        "the lexicon's words deleted": row({text: rude.deleted(text, lexicon) for text in texts}, known, lexicon),
        "people": {
            "rude_left": share(rude.is_rude(text, lexicon) for rewrites in known.values() for text in rewrites),
            "f1": mean([rude.closeness(one, rest) for one, rest in others]),
        },
    }


def row(served: Mapping[str, str], known: rude.Rewrites, lexicon: frozenset[str]) -> Figures:
    """Rude words left and word F1 of the rude sentences; of the neutral ones, how many come out byte for byte.

    These are asked in small letters too, as all rude ones are: many are told apart by their capitals alone.
    """
    texts, right = list(known), rude.neutral(known)
    found = [rude.closeness(served[text], known[text]) for text in texts]
    cut = [rude.closeness(rude.deleted(text, lexicon), known[text]) for text in texts]
    left = [rude.is_rude(served[text], lexicon) for text in texts]
    above = [ours - theirs for ours, theirs in zip(found, cut, strict=True)]
    lost = [bool(rude.lost(text, served[text], known[text])) for text in texts]
    return {
        "rude_left": share(left),
        "f1": mean(found),
        "f1_above_deletion": mean(above),
        "lost": share(lost),
        "f1_above_deletion_if_none_lost": mean([one for one, gone in zip(above, lost, strict=True) if not gone]),
        "changed": share(served[text] != text for text in texts),
        "as_a_person": share(served[text] in known[text] for text in texts),
        "neutral_kept": share(served[text] == text for text in right),
        "neutral_small_kept": share(served[text.lower()] == text.lower() for text in right),
        "first_200": {"rude_left": share(left[:200]), "f1": mean(found[:200])},
    }


def mean(values: Sequence[float]) -> Figures:
    """The mean and its bootstrap interval over the values."""
    dice = random.Random(0)
    drawn = sorted(statistics.fmean(dice.choices(values, k=len(values))) for _ in range(DRAWS))
    return {"mean": statistics.fmean(values), "n": len(values), "interval_95": middle(drawn)}
