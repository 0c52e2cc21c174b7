"""The errors of `bootstrap`, which continue the tree of `aligner_chain.errors`.

    AlignerError
    └── BootstrapError
        ├── StoreError                      a database cannot be used: corrupt, locked, full, of an unknown version
        │   └── RecordError (ValueError)        one correction holds what a database cannot
        ├── LeaseLostError                  another process has taken over what this one was doing
        ├── RegistryError                   a model could not be saved, promoted or rolled back
        │   └── RolloutError                    a model server does not run a version that should be served
        ├── TrainingDataError (ValueError)  a row that nothing can be trained on
        ├── TrainingFailedError             a training ended without a model: crashed, killed, out of memory or time
        ├── AnnotationError                 a journal of annotations cannot be used, or a file is in the way
        ├── JudgeError                      a judge cannot be asked, or is not independent of what it judges
        ├── AnswersError                    an upstream did not answer all the questions it was asked for an evaluation
        ├── ExportError                     training data could not be written, or is not what its manifest says
        ├── NotEnoughPairsError             a round found fewer pairs than it needs
        └── RoundError                      a round cannot be begun, resumed or changed as asked
            ├── RoundBusyError                  another round is not ended, or another process works at it
            ├── RoundChangedError               what a round was begun with is not what is there now
            ├── RoundStoppedError               a round was asked to stop, and can be resumed
            └── StageError                      a stage of a round failed; its error is the cause
                └── TriesSpentError                 a stage was begun as often as it may be

Whatever is raised, the served pair is as it was before.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from aligner_chain.errors import AlignerError, MissingExtraError

_EXTRAS = {
    "langchain_core": "langchain",
    "llama_index": "llama-index",
    **dict.fromkeys(("sqlalchemy", "alembic", "datasketch"), "collect"),
    **dict.fromkeys(("torch", "transformers", "safetensors", "trl", "peft", "datasets", "accelerate"), "train"),
}


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error that says how to install what an import did not find, or None where no extra brings it."""
    package = (error.name or "").partition(".")[0]
    return MissingExtraError(package, _EXTRAS[package]) if package in _EXTRAS else None


def told(error: Exception) -> str:
    """What a person is told of an error; where it is not one of ours, also what it is and where it was raised."""
    if isinstance(error, AlignerError):
        return str(error)
    if isinstance(error, SyntaxError):  # its text names the file and the line
        return f"{type(error).__name__}: {error}"
    raised = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({raised.filename}, line {raised.lineno})"


class BootstrapError(AlignerError):
    """The root of all errors raised by `bootstrap`."""


class StoreError(BootstrapError):
    """A database cannot be used: it is corrupt, locked, out of disk space or of an unknown version."""


class RecordError(StoreError, ValueError):
    """One correction holds what a database cannot; the others can still be written."""


class LeaseLostError(BootstrapError):
    """Another process has taken over what this one was doing, so the transaction that wanted to write was given up."""


class RegistryError(BootstrapError):
    """A model could not be saved, promoted or rolled back."""


class RolloutError(RegistryError):
    """A version is not on every model server that should run it; the servers are as they were, too."""


class TrainingDataError(BootstrapError, ValueError):
    """A row of training data that nothing can be trained on; the message says where it is and what is expected."""


class TrainingFailedError(BootstrapError):
    """A training ended without a model: it crashed, was killed, or ran out of memory or time.

    `status` is the exit status of its process (None: it ran in this one, or out of time), `signal` the name of the signal
    that ended it, `out_of_memory` whether memory was the reason, as far as can be told. Checkpoints stay where they are.
    """

    def __init__(
        self, message: str, *, status: int | None = None, signal: str | None = None, out_of_memory: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.signal, self.out_of_memory = status, signal, out_of_memory


class AnnotationError(BootstrapError):
    """A journal of annotations cannot be read or written, or something else is where the rows should go."""


class JudgeError(BootstrapError):
    """A judge or verifier cannot be asked, or it is the very model whose work it should judge."""


class AnswersError(BootstrapError):
    """An upstream did not answer all the questions that it was asked for an evaluation; what it answered is kept."""


class ExportError(BootstrapError):
    """Training data could not be written, or an export is not what its manifest says; nothing half-written is left."""


class NotEnoughPairsError(BootstrapError):
    """A round found fewer preference pairs than it needs.

    `found` pairs were left of the corrections and `needed` are the least; `dropped` counts the others by reason.
    """

    def __init__(self, found: int, needed: int, dropped: Mapping[str, int] | None = None) -> None:
        super().__init__(found, needed, dropped)
        self.found, self.needed, self.dropped = found, needed, dict(dropped or {})

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return (
            f"{self.found} preference pairs were found and a round needs {self.needed}"
            f" (corrections left out: {dropped or 'none'}). Nothing was trained; the served pair is as it was.\n"
            "Collect more: let the chain run on with AlignerCorrector(on_correction=Collector(store).submit).\n"
            "Only corrections that changed an answer make a pair, and held-out prompts make none.\n"
            "To see a whole round first:  aligner-bootstrap demo"
        )


class RoundError(BootstrapError):
    """A round cannot be begun, resumed or changed as asked; nothing was changed."""


class RoundBusyError(RoundError):
    """Another round is not ended, or another process works at this one."""


class RoundChangedError(RoundError):
    """What a round was begun with, or what its stages left, is not what is there now."""


class RoundStoppedError(RoundError):
    """A round was asked to stop and did after a stage; it can be resumed."""


class StageError(RoundError):
    """A stage of a round failed; the error that stopped it is the cause, and nothing was promoted."""


class TriesSpentError(StageError):
    """A stage was begun as often as it may be; somebody has to look why."""
