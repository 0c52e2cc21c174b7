"""One round: what live chains collected becomes a better upstream and an Aligner that fits it, or nothing changes.

    freeze -> DPO -> measure, gate -> answer anew -> correct -> verify, annotate -> train the Aligner -> calibrate
           -> measure, gate -> promote the pair

Each step is a stage of the ledger (`bootstrap.rounds.stages.STAGES`). Nothing is served before both gates were passed; the
pair that is served stays as it is whatever fails or is killed on the way, and a round that stopped can be resumed.
"""

from __future__ import annotations

from bootstrap.rounds.config import RoundConfig
from bootstrap.rounds.ledger import Ledger
from bootstrap.rounds.nulls import NULLS, REFUSAL, copy_corrector, refuse_corrector
from bootstrap.rounds.result import RoundResult
from bootstrap.rounds.running import Rounds, abort
from bootstrap.rounds.stages import STAGE_NAMES
from bootstrap.rounds.start import register_start
from bootstrap.rounds.values import Round, StageRun
from bootstrap.rounds.work import Say

__all__ = [
    "NULLS",
    "REFUSAL",
    "STAGE_NAMES",
    "Ledger",
    "Round",
    "RoundConfig",
    "RoundResult",
    "Rounds",
    "StageRun",
    "abort",
    "copy_corrector",
    "refuse_corrector",
    "register_start",
    "run_round",
]


def run_round(config: RoundConfig, *, say: Say = lambda line: None, progress: bool = False) -> RoundResult:
    """Runs one round and promotes the new pair if it passes its gates; `Rounds` resumes one that stopped.

    Args:
        config: what it is made of.
        say: is told each step in a line.
        progress: shows training progress on the terminal.

    Raises:
        NotEnoughPairsError: too little was collected.
        RegistryError: no pair is served yet.
        RoundBusyError: another round is not ended.
        StageError: a stage failed; its error is the cause. The pair that was served still is.
    """
    result = Rounds(config=config, say=say, progress=progress).run()
    if result is None:
        raise RuntimeError("a round without a fire key is always a new one")
    return result
