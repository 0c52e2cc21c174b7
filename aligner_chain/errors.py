"""Every error of this package, each saying what was found and the ways out.

    AlignerError
    ├── ConfigurationError (ValueError)
    │   ├── AlignerNotConfiguredError   no Aligner was named and none is served
    │   ├── CheckpointError             a model folder that cannot be used as it is
    │   │   └── ServerMismatchError     a server runs another model, tokenizer or template
    │   │       └── ModelNotServedError     it has no model of that name
    │   ├── TemplateError               an unknown template, or one that does not fit the model
    │   ├── CapabilityError             the engine cannot do what was asked
    │   └── MissingExtraError (ImportError)   an optional package is not installed
    ├── PromptNotFoundError (ValueError)      the question that led to an answer is not known
    └── CorrectionError                 one answer could not be corrected
        ├── ContextOverflowError        question, answer and correction do not fit the model's window
        ├── IncompleteCorrectionError   the correction broke off before its end
        ├── UnreadableCorrectionError   the model's output does not follow its template
        ├── DelimiterError              the text holds a delimiter of a plain-text template
        ├── CorrectionTimeoutError (TimeoutError)   not finished in the time given
        ├── InspectionError             an inspector failed; its error is the cause
        └── EngineError                 the engine failed; its error is the cause
            ├── OverloadedError         more requests wait than the engine takes
            └── ServerError             a model server cannot be reached, or gave no answer that can be read

A `CorrectionError` belongs to one answer: it is put into that answer's `Correction` (outcome `failed`), and the
failure policy of the caller decides whether it is raised. `bootstrap.errors` continues the tree.
"""

from __future__ import annotations


class AlignerError(Exception):
    """The root of all errors raised by aligner-chain."""


class ConfigurationError(AlignerError, ValueError):
    """The way something was set up cannot work; no answer will be corrected until it is changed."""


class AlignerNotConfiguredError(ConfigurationError):
    """No Aligner was given, `ALIGNER_MODEL` is not set and no registry serves one."""


class CheckpointError(ConfigurationError):
    """A model folder lacks something, or holds something broken."""


class ServerMismatchError(CheckpointError):
    """A server runs another model than the checkpoint at hand describes, or with another tokenizer or template."""


class ModelNotServedError(ServerMismatchError):
    """A server has no model of the name that it is asked for, at least not now: one may be loaded while it runs."""


class TemplateError(ConfigurationError):
    """A template is unknown, or does not fit the tokenizer it is used with."""


class CapabilityError(ConfigurationError):
    """The engine cannot do what was asked of it."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional package is needed; the message holds the command that installs it, after `why` it is needed."""

    def __init__(self, package: str, extra: str, why: str = "") -> None:
        super().__init__(f"{why}{package} is not installed. Install it with:  pip install 'aligner-chain[{extra}]'")


class PromptNotFoundError(AlignerError, ValueError):
    """The question of an answer could not be found; correcting blind is never done.

    `reason` is "unknown" (no recorded model run gave this answer), "ambiguous" (several did, to different questions) or
    "wordless" (the question is known, but an image or the like alone).
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CorrectionError(AlignerError):
    """One answer could not be corrected."""


class ContextOverflowError(CorrectionError):
    """Question, answer and room for the correction exceed the model's window; nothing is ever cut."""


class IncompleteCorrectionError(CorrectionError):
    """The correction ended because its budget did, not because the model had finished."""


class UnreadableCorrectionError(CorrectionError):
    """The model's output does not follow its template."""


class DelimiterError(CorrectionError):
    """A text holds a delimiter of its plain-text template, and `delimiters="refuse"` was asked for."""


class CorrectionTimeoutError(CorrectionError, TimeoutError):
    """The correction was not finished in the time given."""


class InspectionError(CorrectionError):
    """An inspector failed on this answer; its own error is the cause."""


class EngineError(CorrectionError):
    """The engine failed while it worked on this answer; its own error is the cause."""


class OverloadedError(EngineError):
    """More requests wait than the engine takes; come back later."""


class ServerError(EngineError):
    """A model server could not be reached, refused a request, or gave an answer that cannot be read.

    `status` is that of HTTP, None where the connection failed; `retry_after_s` what the server asked to wait, in seconds.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
