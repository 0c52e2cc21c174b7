"""Agents whose answer is corrected, against what their tools found, before any event, memory or caller has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import Response
from llama_index.core.memory import BaseMemory
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import AsyncBaseTool, ToolOutput
from pydantic import Field

from aligner_chain.aligner import Aligner
from aligner_chain.llama_index.memory import saying
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor
from aligner_chain.llama_index.wrapping import fitted

Postprocessor = AlignerResponsePostprocessor | Aligner | str | Path | None


class AlignerFunctionAgent(FunctionAgent):
    """A `FunctionAgent` whose answers are corrected: `AlignerFunctionAgent(tools=tools, llm=llm, postprocessor=...)`.

    The Aligner reads the conversation, the answer and what the tools found. Result, `AgentOutput` event and memory hold
    the corrected answer; one whose correction is raised is in none of them. Turns that call a tool pass.

    Args:
        postprocessor: how to correct; an `Aligner`, a folder or a hub id stands for one with its defaults, and None for
            `AlignerResponsePostprocessor()`.
        streaming: False, unlike LlamaIndex's own: the corrected answer is then one `AgentStream` event. With True those
            events show what the model writes, before it was corrected.
        kwargs: all other settings are those of a `FunctionAgent`.
    """

    postprocessor: AlignerResponsePostprocessor = Field(default_factory=AlignerResponsePostprocessor)

    def __init__(
        self, name: str = "Agent", *, postprocessor: Postprocessor = None, streaming: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(name=name, streaming=streaming, **kwargs)
        self.postprocessor = fitted(postprocessor, self)

    async def take_step(
        self, ctx: Any, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        before = list(await ctx.store.get(self.scratchpad_key, default=[]))
        output = await super().take_step(ctx, llm_input, tools, memory)
        if output.tool_calls:
            return output
        await ctx.store.set(self.scratchpad_key, [])
        text = await _corrected(self.postprocessor, ctx, llm_input, output.response.content)
        message = saying(output.response, text)
        await ctx.store.set(self.scratchpad_key, [*before, message])
        _tell(self, ctx, text)
        return _telling(output, message)


class AlignerReActAgent(ReActAgent):
    """A `ReActAgent` whose answers are corrected, as an `AlignerFunctionAgent`'s are. What it thought is not.

    Args:
        postprocessor: how to correct; an `Aligner`, a folder or a hub id stands for one with its defaults, and None for
            `AlignerResponsePostprocessor()`.
        streaming: False, unlike LlamaIndex's own: the corrected answer is then one `AgentStream` event. With True those
            events show what the model writes, before it was corrected.
        kwargs: all other settings are those of a `ReActAgent`.
    """

    postprocessor: AlignerResponsePostprocessor = Field(default_factory=AlignerResponsePostprocessor)

    def __init__(
        self, name: str = "Agent", *, postprocessor: Postprocessor = None, streaming: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(name=name, streaming=streaming, **kwargs)
        self.postprocessor = fitted(postprocessor, self)

    async def take_step(
        self, ctx: Any, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        before = list(await ctx.store.get(self.reasoning_key, default=[]))
        output = await super().take_step(ctx, llm_input, tools, memory)
        if output.tool_calls or output.retry_messages:
            return output
        last = (await ctx.store.get(self.reasoning_key))[-1]
        await ctx.store.set(self.reasoning_key, [])
        text = await _corrected(self.postprocessor, ctx, llm_input, last.response)
        last = last.model_copy(update={"response": text})
        await ctx.store.set(self.reasoning_key, [*before, last])
        _tell(self, ctx, text)
        return _telling(output, saying(output.response, last.get_content()))


async def _corrected(
    postprocessor: AlignerResponsePostprocessor, ctx: Any, llm_input: Sequence[ChatMessage], answer: str | None
) -> str:
    # The names in the store are LlamaIndex's own and not documented.
    calls = await ctx.store.get("current_tool_calls", default=[])
    question = await ctx.store.get("user_msg_str")
    # If the correction is raised nobody is given this step, and the next question shall find nothing of it.
    await ctx.store.set("current_tool_calls", [])
    response = Response(
        answer, source_nodes=[node for call in calls if _tells(call) for node in _found(call.tool_output)]
    )
    corrected = await postprocessor.apostprocess_response(response, query_str=question, chat_history=_before(llm_input))
    await ctx.store.set("current_tool_calls", calls)
    return corrected.response or ""


def _telling(output: AgentOutput, message: ChatMessage) -> AgentOutput:
    """The output with another message; what the provider sent is kept only where it says the same."""
    raw = output.raw if message.content == output.response.content else None
    return output.model_copy(update={"response": message, "raw": raw})


def _before(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """The conversation before the question. After it may stand what an agent did that handed over."""
    asked = [place for place, message in enumerate(messages) if message.role == MessageRole.USER]
    return messages[: asked[-1]] if asked else messages


def _tells(call: ToolCallResult) -> bool:
    return call.tool_name != "handoff" and not call.tool_output.is_error


def _found(output: ToolOutput) -> list[NodeWithScore]:
    """The nodes behind a tool's answer, or its answer as one."""
    if isinstance(output.raw_output, Response):
        return output.raw_output.source_nodes
    return [NodeWithScore(node=TextNode(text=output.content))]


def _tell(agent: FunctionAgent | ReActAgent, ctx: Any, text: str) -> None:
    if not agent.streaming:
        ctx.write_event_to_stream(AgentStream(delta=text, response=text, current_agent_name=agent.name))
