"""What a round is made of, and the hash by which a resumed round knows that it is still the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner_chain import __version__
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from bootstrap.aligner_training import AlignerTrainingSettings
from bootstrap.answering import Answering
from bootstrap.evaluation import GatePolicy
from bootstrap.fields import AT_LEAST_ONE, NOT_NEGATIVE, SHARE, require_fields
from bootstrap.files import tree_sha256
from bootstrap.judges import Annotator, PreferenceJudge, Verifier, require_independent
from bootstrap.measures import Yardstick
from bootstrap.pairs import Triple
from bootstrap.rounds.artifacts import json_sha256
from bootstrap.training import Launcher, versions
from bootstrap.upstream import DPOSettings


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """What a round is made of.

    Args:
        store: the file or URL of the `CorrectionStore`.
        home: the folder of the `Registry`; None takes `ALIGNER_HOME`.
        registry: its database by URL; None takes the file in the folder, or `ALIGNER_REGISTRY`.
        base_upstream: the model folder that every round's candidate starts from. None where the upstream is a provider's and
            cannot be trained here: rounds then improve the Aligner alone, on the answers that were recorded, and hand the
            pairs over in the form of hosted fine-tuning (`home/exports`).
        base_aligner: the Aligner folder that every round's candidate starts from.
        yardstick: how held-out answers are judged.
        preference: says which of two answers is better; the gate asks it about held-out prompts until it can decide. None
            takes the verdicts of the yardstick's judge.
        verifier: confirms corrections before the Aligner is trained on them.
        annotator: repairs what the verifier refused, at most `annotations` rows; None leaves them out.
        gold: rows that are in every training set of the Aligner.
        known_right: right answers of which 98 % must be kept; None takes those of the gate set that are judged right.
        answering: how upstreams are asked.
        launcher: how trainings are started: each in a process of its own, or in this one (`Launcher.here()`).
        policy: what the gates require; with fewer gate prompts than its margins need they hold.
        unrelated: answered exchanges that no correction is about, to see what else a training changed.
        aligner_alone: where the candidate upstream is refused, the round goes on and trains an Aligner for the upstream
            that is served. So by default, since what was collected teaches the Aligner whatever became of that candidate,
            and since it is promoted only if it is shown to be better than the one that is served. False ends the round
            there, and saves the Aligner's training and what annotator and verifier cost.
        margin: how far below 0 the lower bound of an Aligner's change may be, as a share. Of n gate prompts without any
            change it is about 3.84 / n, so 1 point needs 384 of them.
        pair_margin: the same for the new pair as a whole against the served one. An upstream that needs less correcting
            leaves subtler faults, so a little may be lost here while the Aligner itself got better.
        least_pairs: fewer pairs than this are not trained on.
        regenerate: at most so many training prompts are answered anew.
        examples: so many answers and corrections of held-out prompts are kept for the report.
        tries: how often a stage may be begun; a kill counts. `retry` allows as many again.

    Raises:
        JudgeError: judge, verifier and annotator are not independent of each other.
        ConfigurationError: a number is of another type, or out of range.
    """

    store: str | Path
    base_aligner: Path
    yardstick: Yardstick
    verifier: Verifier
    base_upstream: Path | None = None
    home: Path | None = None
    registry: str | None = None
    annotator: Annotator | None = None
    preference: PreferenceJudge | None = None
    annotations: int = 200
    gold: tuple[Triple, ...] = ()
    known_right: tuple[Exchange, ...] | None = None
    answering: Answering = field(default_factory=Answering)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    aligner: AlignerTrainingSettings = field(default_factory=AlignerTrainingSettings)
    launcher: Launcher = field(default_factory=Launcher)
    policy: GatePolicy = field(default_factory=GatePolicy)
    unrelated: tuple[Exchange, ...] = ()
    aligner_alone: bool = True
    margin: float = 0.01
    pair_margin: float = 0.03
    least_pairs: int = 50
    regenerate: int = 2000
    examples: int = 12
    tries: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        require_fields(
            self,
            **dict.fromkeys(("least_pairs", "tries"), AT_LEAST_ONE),
            **dict.fromkeys(("margin", "pair_margin"), SHARE),
            **dict.fromkeys(("annotations", "regenerate", "examples", "seed"), NOT_NEGATIVE),
        )
        for judge in (self.yardstick.judge, self.preference):
            require_independent(judge=judge, verifier=self.verifier, annotator=self.annotator)


def fingerprint(config: RoundConfig) -> dict[str, str]:
    """What a round's outcome depends on beside its data, part by part: settings, base models, judges, packages.

    Where the store and the registry lie, and how often a stage may be tried, are no part of it.

    Raises:
        ConfigurationError: a base model is not there, or is an adapter.
    """
    settings = {
        name: json_sha256(getattr(config, name))
        for name in (
            "annotations",
            "gold",
            "known_right",
            "unrelated",
            "answering",
            "dpo",
            "aligner",
            "policy",
            "aligner_alone",
            "margin",
            "pair_margin",
            "least_pairs",
            "regenerate",
            "seed",
        )
    }
    judges = {
        "judge": config.yardstick.judge,
        "preference": config.preference,
        "verifier": config.verifier,
        "annotator": config.annotator,
    }
    return {
        **settings,
        **{name: _name(one) for name, one in judges.items()},
        **{name: _folder_sha256(config, name) for name in ("base_upstream", "base_aligner")},
        **{f"package {name}": version for name, version in versions().items()},
        "package aligner-chain": __version__,
    }


def _folder_sha256(config: RoundConfig, name: str) -> str:
    folder: Path | None = getattr(config, name)
    if folder is None:
        return ""
    if not folder.is_dir():
        raise ConfigurationError(
            f"{name} is {folder}, and there is no such folder. Give that of the model to start from."
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"{name} is {folder}, which is an adapter, and rounds start from whole weights. Merge it into its base:  "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)\n"
            "An adapter that is in the registry:  aligner-bootstrap registry export --merge"
        )
    return tree_sha256(folder)


def _name(one: object) -> str:
    """What a judge is called: its function, or the class of the object that is called."""
    if one is None:
        return ""
    named: Any = one if hasattr(one, "__qualname__") else type(one)
    return f"{named.__module__}:{named.__qualname__}"
