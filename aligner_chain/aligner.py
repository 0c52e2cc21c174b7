"""The Aligner: exchanges in, corrections out. Rendering and assembling are pure; between them one engine runs.

A batch is the primitive; one exchange is a batch of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import wait
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aligner_chain import decisions, telemetry
from aligner_chain.assembly import Asked, Assembly, Job
from aligner_chain.checkpoint import FILE as ALIGNER_FILE
from aligner_chain.checkpoint import AlignerMetadata, read_metadata
from aligner_chain.engines.base import Engine, Request, Ticket
from aligner_chain.errors import CapabilityError, CheckpointError, ConfigurationError, EngineError, TemplateError
from aligner_chain.exchange import Correction, Exchange, Turn
from aligner_chain.given import not_an_aligner, require_exchanges
from aligner_chain.inspectors import Inspector
from aligner_chain.policy import Inspection, Policy
from aligner_chain.session import Reading, Session
from aligner_chain.streaming import Pieces, awoken, woken
from aligner_chain.telemetry import spans
from aligner_chain.templates import CorrectionTemplate, get_template
from aligner_chain.thoughts import whole

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from llama_index.core.llms import LLM
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from aligner_chain.engines.server.wire import ServerOptions
    from aligner_chain.serving import Served

_T = TypeVar("_T")


class Aligner:
    """Corrects answers. Make one with `from_pretrained`, `from_server`, `from_chat_model` or `scripted`; it may be shared by threads.

    `metadata` names it; `identity` is `name@version`. With an engine of tokens, `template` and `tokenizer` are needed.
    `adapter` names one that the engine has loaded; `policy` says what is served, by default every correction that damages
    nothing by the checks of `aligner_chain.checks`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        metadata: AlignerMetadata,
        template: CorrectionTemplate | None = None,
        tokenizer: Tokenizer | None = None,
        adapter: str | None = None,
        policy: Policy | None = None,
    ) -> None:
        if engine.capabilities.tokens and (template is None or tokenizer is None):
            raise ConfigurationError(
                "An engine of tokens needs a template and a tokenizer: Aligner(engine, metadata=..., "
                "template=get_template(name), tokenizer=engine.tokenizer)."
            )
        if template is not None and tokenizer is not None:
            template.check(tokenizer)
        self.engine, self.metadata, self.template, self.tokenizer = engine, metadata, template, tokenizer
        self._adapter = adapter
        self._assembly = Assembly(metadata, engine.capabilities, template, tokenizer)
        self.policy = (policy or Policy()).allowing(metadata.may_delete)
        self.pair: Served | None = None
        self._submit: Callable[[Sequence[Request]], Sequence[Ticket]] = engine.submit

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        template: str | CorrectionTemplate | None = None,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        policy: Policy | None = None,
    ) -> Aligner:
        """Loads an Aligner from a model folder or a hub id.

        `template` names the template of a checkpoint without `aligner.json`, and overrides the one in it; `revision`
        is a hub revision; `device` and `dtype` "auto" are bf16 on CUDA when there is one, else fp32 on the CPU.

        Raises `CheckpointError` for what cannot be loaded and `TemplateError` for a template that does not fit.
        """
        from aligner_chain.engines.huggingface import HuggingFaceEngine
        from aligner_chain.engines.loading import local_folder

        if not isinstance(path, str | Path):
            raise not_an_aligner(path)
        folder = local_folder(path, revision)
        metadata, chosen = described(path, folder, template, revision)
        engine = HuggingFaceEngine.from_pretrained(folder, device=device, dtype=dtype)
        return cls(engine, metadata=metadata, template=chosen, tokenizer=engine.tokenizer, policy=policy)

    @classmethod
    def from_server(
        cls,
        url: str | Sequence[str],
        model: str,
        *,
        checkpoint: str | Path | None = None,
        template: str | CorrectionTemplate | None = None,
        policy: Policy | None = None,
        options: ServerOptions | None = None,
    ) -> Aligner:
        """An Aligner whose model runs on vLLM, or on another server with `/v1/completions`. Needs the extra `server` alone.

        Args:
            url: The address, such as "http://host:8000/v1"; several, where several servers run the same model.
            model: The name under which they serve it.
            checkpoint: The Aligner's folder, or its hub id in the local cache, of which only the tokenizer and the
                configuration are read. None: the folder that the server names, where it exists here.
            template: As in `from_pretrained`.
            policy: What is served.
            options: Time limits, retries, concurrency, TLS. The key comes from the environment: `ALIGNER_API_KEY`.

        Raises:
            CheckpointError: The checkpoint cannot be read; as `ServerMismatchError`, the server runs another one.
            CapabilityError: The server cannot do what the template needs.
            ServerError: No server answers.
        """
        from aligner_chain.engines.server import ServerEngine, checkpoint_of

        engine = ServerEngine(url, model, options)
        try:
            folder = checkpoint_of(engine, checkpoint)
            metadata, chosen = described(checkpoint or folder, folder, template, None)
            engine.agree(chosen, folder)
            return cls(engine, metadata=metadata, template=chosen, tokenizer=engine.tokenizer, policy=policy)
        except BaseException:
            engine.close()
            raise

    @classmethod
    def from_chat_model(cls, chat_model: BaseChatModel | LLM) -> Aligner:
        """An Aligner without training: a chat model of LangChain or LlamaIndex corrects under minimal-edit instructions.

        Raises `TypeError` for what is no chat model.
        """
        from aligner_chain.engines.chat import TEMPLATE, ChatEngine

        model: Any = chat_model
        known = (getattr(model, "model_name", None), getattr(model, "model", None))
        told = getattr(getattr(model, "metadata", None), "model_name", None)  # LlamaIndex
        name = next((str(name) for name in (*known, told) if name and name != "unknown"), type(model).__name__)
        return cls(ChatEngine(chat_model), metadata=AlignerMetadata(name=name, version="chat", template=TEMPLATE))

    @classmethod
    def scripted(cls, script: Callable[[Exchange], str]) -> Aligner:
        """A fake for tests: `script` returns the corrected text, and the same text approves the answer."""
        from aligner_chain.engines.scripted import ScriptedEngine

        if not callable(script):
            raise TypeError(
                f"Aligner.scripted takes a function of an exchange, and this is a {type(script).__name__}:\n"
                '  Aligner.scripted(lambda exchange: exchange.answer.replace("bad", "good"))'
            )

        metadata = AlignerMetadata(name="scripted", version="1", template="scripted")
        return cls(ScriptedEngine(script), metadata=metadata)

    @classmethod
    def squad(
        cls,
        members: Mapping[str, Aligner],
        inspector: Inspector,
        thresholds: Mapping[str, float],
        *,
        stages: int = 1,
        policy: Policy | None = None,
    ) -> Aligner:
        """Several Aligners as one, each for a criterion of its own: an answer goes to the one whose criterion it fails worst.

        Args:
            members: The Aligner for each criterion; they stay the caller's to close.
            inspector: Scores the criteria of every answer.
            thresholds: For each criterion the score that an answer needs more than to pass.
            stages: Aligners that one answer sees at most, the worst criterion first; one that passes all of them stops.
            policy: What is served of the corrections, beside what each member's own policy let pass.

        Its `correct` takes no criteria: those of its members are what it judges by.

        Raises:
            ConfigurationError: A criterion without a threshold or with one that is not between 0 and 1, or no member or stage
                at all.
        """
        from aligner_chain.squad import SquadEngine

        engine = SquadEngine(members, inspector, thresholds, stages)
        version = "+".join(member.identity for member in members.values())
        return cls(engine, metadata=AlignerMetadata(name="squad", version=version, template="squad"), policy=policy)

    def with_adapter(self, path: str | Path) -> Aligner:
        """An Aligner on the same model in memory with the PEFT adapter in a folder or behind a hub id.

        The folder's `aligner.json` names it and its version, else the folder does; a version is loaded once. Both Aligners
        serve side by side, and closing the new one frees the adapter alone.

        Raises:
            CapabilityError: The engine has no adapters, or has this version already.
            CheckpointError: The adapter does not fit the model.
            TemplateError: It was trained for another template than this Aligner's.
        """
        from aligner_chain.engines.loading import local_folder

        folder = local_folder(path)
        metadata = _adapter_metadata(folder, self.metadata)
        self.engine.load(metadata.identity, folder)
        return Aligner(
            self.engine,
            metadata=metadata,
            template=self.template,
            tokenizer=self.tokenizer,
            adapter=metadata.identity,
            policy=self.policy,
        )

    def under(self, policy: Policy) -> Aligner:
        """The same Aligner under another policy. It shares model and engine, and closing one closes both."""
        other = copy(self)
        other.policy = policy.allowing(self.metadata.may_delete)
        return other

    def promoted_in(self, pair: Served) -> Aligner:
        """The same Aligner as one of a promoted pair, which its corrections then name. It shares model and engine."""
        other = copy(self)
        other.pair = pair
        return other

    def __deepcopy__(self, memo: object) -> Aligner:
        return self  # One model in memory, however often a framework copies what holds it.

    @property
    def identity(self) -> str:
        """`name@version`."""
        return self.metadata.identity

    def correct(
        self,
        exchanges: Sequence[Exchange],
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,
    ) -> list[Correction]:
        """Corrects each answer; one `Correction` per exchange, in the same order.

        Args:
            exchanges: What was asked and answered. An empty answer is skipped.
            criteria: What to judge by, in the Aligner's own words; None: what the policy says, else what it was trained for.
            strength: The score of an answer below which it is corrected, from 0 (every answer stays as it is) to 1 (each is
                corrected). The score is the one of `inspect`. None: what the policy says, else the threshold that was
                calibrated or that `aligner.json` names, else the verdict as it is written.
            timeout: Seconds for all of them together; None: without end. What is not finished then has failed. It bounds the
                engine: inspectors of the policy, which nobody can stop but they themselves, take their time besides.

        What goes wrong with one answer does not raise: its correction has the outcome "failed", the `error`, and the
        original as its text.

        Raises:
            CapabilityError: The Aligner has no place for criteria, or gives no score that a strength could stand for.
            ConfigurationError: `strength` is not between 0 and 1.
        """
        require_exchanges(exchanges)
        with spans(self.identity, exchanges) as observed:
            spoken = self.policy.spoken(exchanges)
            inspections = self.policy.inspect(spoken, self.metadata)
            jobs, tickets = self._start(spoken, inspections, self._asked(criteria, strength, timeout))
            try:
                running = [ticket.future for ticket in tickets if not ticket.future.done()]
                if running:
                    wait(running, timeout=timeout)
            finally:
                _cancel(tickets)
            corrections = self._served(jobs, inspections, exchanges)
            observed.end(corrections)
            self._log(corrections, criteria)
        return corrections

    async def acorrect(
        self,
        exchanges: Sequence[Exchange],
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (the same name and meaning as in `correct`)
    ) -> list[Correction]:
        """`correct` without blocking the event loop; cancelling the task cancels what is being decoded."""
        require_exchanges(exchanges)
        with spans(self.identity, exchanges) as observed:
            spoken = self.policy.spoken(exchanges)
            inspections = await self._aside(self.policy.inspect, spoken, self.metadata)
            jobs, tickets = self._start(spoken, inspections, self._asked(criteria, strength, timeout))
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.gather(
                        *(asyncio.wrap_future(ticket.future) for ticket in tickets), return_exceptions=True
                    )
            except TimeoutError:
                pass  # told apart for each job by `_finish`
            finally:
                _cancel(tickets)
            corrections = await self._aside(self._served, jobs, inspections, exchanges)
            observed.end(corrections)
            self._log(corrections, criteria)
        return corrections

    def stream(
        self,
        exchange: Exchange,
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,
        unchecked: bool = False,
    ) -> Generator[str | Correction, None, None]:
        """The served text in pieces, and last the `Correction`.

        An answer that is kept comes as one piece, after the verdict, and so does a correction that is still to be checked.
        With `unchecked`, or where the policy checks nothing, text comes while it is decoded; what checks then find is only
        told. Of an answer that failed no text comes, except what was out when a correction broke off; its original is the
        caller's to serve. An engine that gives no tokens before its end gives one piece. Closing the iterator stops the
        decoding. Other arguments and errors are those of `correct`.
        """
        require_exchanges([exchange])
        with spans(self.identity, [exchange]) as observed:
            spoken = self.policy.spoken([exchange])
            inspections = self.policy.inspect(spoken, self.metadata)
            asked = self._asked(criteria, strength, timeout, stream=unchecked or not self.policy.holds)
            [job], tickets = self._start(spoken, inspections, asked)
            pieces = self._pieces(job, exchange)
            try:
                for _ in woken(tickets, timeout):
                    if piece := pieces.next(tickets[0].ids):
                        yield piece
            finally:
                _cancel(tickets)
            [served] = self._served([job], inspections, [exchange])
            piece, correction = pieces.end(served)
            observed.end([correction])
            self._log([correction], criteria)
        if piece:
            yield piece
        yield correction

    async def astream(
        self,
        exchange: Exchange,
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (the same name and meaning as in `stream`)
        unchecked: bool = False,
    ) -> AsyncGenerator[str | Correction, None]:
        """`stream` without blocking the event loop."""
        require_exchanges([exchange])
        with spans(self.identity, [exchange]) as observed:
            spoken = self.policy.spoken([exchange])
            inspections = await self._aside(self.policy.inspect, spoken, self.metadata)
            asked = self._asked(criteria, strength, timeout, stream=unchecked or not self.policy.holds)
            [job], tickets = self._start(spoken, inspections, asked)
            pieces = self._pieces(job, exchange)
            try:
                async for _ in awoken(tickets, timeout):
                    if piece := pieces.next(tickets[0].ids):
                        yield piece
            finally:
                _cancel(tickets)
            [served] = await self._aside(self._served, [job], inspections, [exchange])
            piece, correction = pieces.end(served)
            observed.end([correction])
            self._log([correction], criteria)
        if piece:
            yield piece
        yield correction

    def begin(
        self,
        turns: Sequence[Turn],
        context: Sequence[str] = (),
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
    ) -> Session:
        """A session that reads the answer while the upstream still writes it, so that little is left to do at its end.

        Args:
            turns: The conversation before the answer.
            context: The passages that were retrieved for it.
            criteria: As in `correct`.
            strength: As in `correct`.

        What is wrong with any of it shows when the session is finished, as it does in `correct`. An engine that cannot
        read a growing prompt starts then.
        """
        exchange = Exchange(turns=tuple(turns), answer="", context=tuple(context))
        reading = Reading(
            self.engine,
            self._beginning(exchange, self._judged_by(criteria)),
            self._adapter,
        )
        reader = copy(self)
        reader._submit = reading.submit  # noqa: SLF001  (a copy of its own kind)
        return Session(reader, reading, exchange, criteria=criteria, strength=strength)

    def warm_up(self) -> None:
        """Corrects a made-up answer, which nobody hears of, so that the first real one waits for nothing.

        Raises:
            CorrectionError: The model cannot be run.
        """
        [job], tickets = self._start(
            [Exchange.of("Is it open?", "It is.")], [Inspection()], self._asked(None, None, None)
        )
        for ticket in tickets:
            ticket.result()
        if job.settled is not None:
            job.settled.raise_for_failure()

    def close(self) -> None:
        """Finishes what runs and frees the model, or only the adapter, if it has one."""
        if self._adapter is None:
            self.engine.close()
        else:
            self.engine.unload(self._adapter)

    def inspect(
        self, exchanges: Sequence[Exchange], *, criteria: Sequence[str] | None = None
    ) -> list[Mapping[str, float]]:
        """The score of each answer between 0 and 1, without a correction: an Aligner is an inspector, too.

        It is {"leave": probability that the Aligner leaves the answer as it is}: the greater one of that of its verdict KEEP
        ("keep", where the engine cannot tell more) and that of the least likely token of the answer, or of its end, where
        it is written again ("copy", for an Aligner without a verdict). An answer that cannot be scored has none. Costs one
        forward.

        Raises:
            CapabilityError: The engine gives no scores.
        """
        if not self._assembly.score:
            raise CapabilityError(
                f"{self.identity} ({self.metadata.template}) gives no score of an answer. Inspect with a local Aligner, or "
                "with a ClassifierInspector."
            )
        asked = replace(self._asked(criteria, None, None), score_only=True)
        spoken = self.policy.spoken(exchanges)
        jobs, tickets = self._start(spoken, [Inspection()] * len(exchanges), asked)
        wait([ticket.future for ticket in tickets])
        return [self._assembly.scores(job) if job.ticket else {} for job in jobs]

    def _judged_by(self, criteria: Sequence[str] | None) -> Sequence[str]:
        return self.policy.criteria if criteria is None else criteria

    def _log(self, corrections: Sequence[Correction], criteria: Sequence[str] | None) -> None:
        decisions.tell(corrections, self.metadata.criteria, self.policy.criteria, criteria)

    def _asked(
        self,
        criteria: Sequence[str] | None,
        strength: float | None,
        timeout: float | None,
        *,
        stream: bool = False,
    ) -> Asked:
        can = self.engine.capabilities
        return Asked(
            criteria=tuple(self._judged_by(criteria)),
            adapter=self._adapter,
            gate=self._assembly.gate(self.policy.strength if strength is None else strength),
            deadline_s=timeout if can.deadline else None,
            stream=stream and can.stream,
        )

    def _start(
        self, exchanges: Sequence[Exchange], inspections: Sequence[Inspection], asked: Asked
    ) -> tuple[list[Job], list[Ticket]]:
        jobs = [self._job(*both, asked) for both in zip(exchanges, inspections, strict=True)]
        running = [job for job in jobs if job.request is not None]
        try:
            tickets = list(self._submit([job.request for job in running if job.request is not None]))
        except EngineError as error:
            failed = self._assembly.failed
            return [Job(job.exchange, settled=job.settled or failed(job.exchange, error)) for job in jobs], []
        for job, ticket in zip(running, tickets, strict=True):
            job.ticket = ticket
        return jobs, tickets

    def _job(self, exchange: Exchange, inspection: Inspection, asked: Asked) -> Job:
        if inspection.error is not None:
            return Job(exchange, settled=self._assembly.failed(exchange, inspection.error))
        if inspection.passed:
            passed = self._assembly.correction(exchange, "approved", reason="it passed inspection")
            return Job(exchange, settled=passed)
        return self._assembly.job(exchange, asked)

    def _served(
        self, jobs: Sequence[Job], inspections: Sequence[Inspection], exchanges: Sequence[Exchange]
    ) -> list[Correction]:
        served = self.policy.serve(self._finished(jobs, inspections))
        return [whole(*both) for both in zip(served, exchanges, strict=True)]

    def _pieces(self, job: Job, exchange: Exchange) -> Pieces:
        """What a stream hands out; the thoughts that nobody looked at come with the first text behind them."""
        read, begin = self._assembly.reader(job), len(exchange.answer) - len(job.exchange.answer)
        return Pieces(lambda ids: f"{exchange.answer[:begin]}{text}" if (text := read(ids)) else "")

    def _finished(self, jobs: Sequence[Job], inspections: Sequence[Inspection]) -> list[Correction]:
        corrections = [self._paired(self._assembly.finish(job)) for job in jobs]
        return [
            replace(one, scores={**inspection.scores, **one.scores}) if inspection.scores else one
            for one, inspection in zip(corrections, inspections, strict=True)
        ]

    def _paired(self, correction: Correction) -> Correction:
        """The correction with the promoted pair that it is of; that another upstream wrote the answer is counted."""
        if self.pair is None:
            return correction
        mismatched = self.pair.mismatches(correction.exchange.upstream)
        if mismatched:
            telemetry.count(telemetry.MISMATCHED)
        return replace(correction, pair=self.pair.pair, mismatched=mismatched)

    async def _aside(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Off the event loop, where there are inspectors to wait for."""
        return await asyncio.to_thread(work, *arguments) if self.policy.inspects else work(*arguments)

    def _beginning(self, exchange: Exchange, criteria: Sequence[str]) -> Callable[[str], tuple[int, ...]] | None:
        """What gives the beginning of the prompt, where the engine can use it and the exchange allows it."""
        can = self.engine.capabilities
        if not can.overlap or self.template is None or self.tokenizer is None or not exchange.question.strip():
            return None
        try:
            return self.template.beginning(exchange, self.tokenizer, window=can.window, criteria=criteria)
        except Exception:  # noqa: BLE001  The upstream may go on writing; the finish raises it, or tells of it.
            return None


def described(
    path: str | Path, folder: Path, template: str | CorrectionTemplate | None, revision: str | None
) -> tuple[AlignerMetadata, CorrectionTemplate]:
    """What a checkpoint says of itself, and the template it is used with. Raises `CheckpointError` and `TemplateError`."""
    metadata = _metadata(path, folder, template, revision)
    chosen = template if isinstance(template, CorrectionTemplate) else get_template(metadata.template)
    if template is None and metadata.template_text not in ("", chosen.text):
        raise _other_text(folder, metadata)
    return metadata, chosen


def _metadata(
    path: str | Path, folder: Path, template: str | CorrectionTemplate | None, revision: str | None
) -> AlignerMetadata:
    """What `aligner.json` says, or what can be said without it where the caller names the template."""
    if template is None:
        return read_metadata(folder)
    name = template if isinstance(template, str) else template.name
    try:
        known = read_metadata(folder)
        return replace(known, template=name, calibrations=known.calibrations if name == known.template else {})
    except CheckpointError:
        return AlignerMetadata(name=Path(path).name, version=revision or "0", template=name)


def _adapter_metadata(folder: Path, base: AlignerMetadata) -> AlignerMetadata:
    if not (folder / ALIGNER_FILE).exists():
        return AlignerMetadata(name=folder.name, version="0", template=base.template)
    metadata = read_metadata(folder)
    if metadata.template != base.template:
        raise TemplateError(
            f"The adapter in {folder} was trained for the template {metadata.template}, and {base.identity} has "
            f"{base.template}. Load it with its own base: Aligner.from_pretrained(folder)."
        )
    return metadata


def _other_text(folder: Path, metadata: AlignerMetadata) -> TemplateError:
    return TemplateError(
        f"{folder} was trained with another text of the template {metadata.template} than this version of aligner-chain "
        f"has:\n{metadata.template_text}\nWays out: install the version that trained it "
        f"({metadata.package_version}), train it anew with aligner-bootstrap train-aligner, or, if the difference does "
        f'not matter, pass template="{metadata.template}".'
    )


def _cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.future.done():
            ticket.cancel()
