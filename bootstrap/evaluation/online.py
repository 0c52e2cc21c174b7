"""What each test may cost when candidates are tested round after round, so that few of all promotions are false.

Fifty rounds with tests at 5 % promote two or three candidates that are no better, even if none ever is. e-LOND (Z. Xu and
A. Ramdas 2024, Online multiple testing with e-values, AISTATS, arXiv 2311.06412) gives the next test a level that falls
with the number of tests made and rises with each promotion: in expectation at most `alpha` of the promotions are false,
after every round, also if the tests depend on each other, as they do where the same gate prompts are asked each time.
It needs e-values, so it is for `sequential_gate`; an interval of that level would need independent tests.
"""

from __future__ import annotations


def level(tests: int, promoted: int, alpha: float = 0.05) -> float:
    """The alpha of the next test.

    Args:
        tests: how many were made before it, whatever they decided.
        promoted: how many of them promoted.
        alpha: the share of false ones among all promotions, in expectation.

    Returns:
        `alpha` * (`promoted` + 1) * w(t) for test number t = `tests` + 1 with the weights w(t) = 1 / (t (t + 1)), whose
        sum is 1. The first is tested at alpha / 2.

    Raises:
        ValueError: the counts or alpha cannot be.
    """
    if not 0 <= promoted <= tests:
        raise ValueError(f"promoted must be between 0 and the number of tests, not {promoted} of {tests}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not be {alpha}")
    number = tests + 1
    return alpha * (promoted + 1) / (number * (number + 1))
