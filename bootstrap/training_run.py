"""One `train-aligner`: a file of rows and a base model in, an Aligner's folder out, resumable."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.errors import ConfigurationError
from aligner_chain.templates import get_template
from bootstrap.aligner_training import AlignerTraining, AlignerTrainingSettings, add_template_tokens, train_aligner
from bootstrap.pairs import manifest, read_triples
from bootstrap.sft import TrainingSettings, quiet_network
from bootstrap.training import PLAN, claim
from bootstrap.upstream import LORA


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What to train on, from what, to where."""

    data: Path
    base: str
    out: Path
    settings: AlignerTrainingSettings
    name: str = "aligner"
    licence: str = ""
    resume: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> TrainingRun:
        """The run that the command line describes."""
        shared = {
            "steps": arguments.steps,
            "batch": arguments.batch,
            "learning_rate": arguments.learning_rate,
            "seed": arguments.seed,
            "save_every": arguments.save_every,
        }
        warm = arguments.warm_up_epochs
        settings = AlignerTrainingSettings(
            warm_up=TrainingSettings(epochs=warm, **shared) if warm else None,
            correction=TrainingSettings(epochs=arguments.epochs, **shared),
            template=arguments.template,
            asked_share=arguments.asked_share,
            lora={**LORA, "r": arguments.lora, "lora_alpha": 2 * arguments.lora} if arguments.lora else None,
            seed=arguments.seed,
        )
        given = {name: getattr(arguments, name) for name in ("data", "base", "out", "name", "licence", "resume")}
        return cls(settings=settings, **given)

    def run(self, *, say: Callable[[str], None], progress: bool = False) -> AlignerTraining:
        """Trains and saves.

        Raises:
            TrainingDataError: the data cannot be trained on.
            ConfigurationError: `out` is not empty, or what is resumed was started with other settings or data.
        """
        quiet_network()
        template = get_template(self.settings.template)
        rows = read_triples(self.data)
        digest = manifest(rows)["sha256"]
        self._claim(digest)
        say(f"{len(rows)} rows from {self.data}, base {self.base}")
        model, tokenizer = self._load()
        trained = train_aligner(
            model, tokenizer, rows, self._work, self.settings, progress=progress, resume=self.resume
        )
        trained.model.save_pretrained(self.out)
        tokenizer.save_pretrained(self.out)
        criteria = tuple(dict.fromkeys(name for row in rows for name in row.criteria))
        metadata = AlignerMetadata(
            name=self.name,
            version=digest[:12],
            template=template.name,
            template_text=template.text,
            criteria=criteria,
            base_model=self.base,
            data_sha256=digest,
            licence=self.licence,
        )
        # Last, since its presence makes the folder an Aligner.
        write_metadata(self.out, metadata)
        return trained

    @property
    def _work(self) -> Path:
        return self.out / "work"

    def _claim(self, digest: str) -> None:
        """Refuses to overwrite, and to resume with other settings: the trainer itself would go on silently."""
        wanted = {"base": self.base, "data_sha256": digest, "settings": self.settings}
        resumed = self.resume and (self._work / PLAN).exists()
        if not resumed and self.out.exists() and any(self.out.iterdir()):
            message = f"{self.out} is not empty. Name a new folder with --out, or go on with --resume."
            raise ConfigurationError(message)
        claim(self._work, wanted)

    def _load(self) -> tuple[Any, Any]:
        from aligner_chain.engines.loading import load

        model, tokenizer = load(self.base, revision=None, device="auto", dtype="float32")
        if self.settings.template == "aligner-chain/1":
            add_template_tokens(model, tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer
