"""Agents whose answer is corrected, against what their tools found, before any event, memory or caller has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import Response
from llama_index.core.memory import BaseMemory
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import AsyncBaseTool, ToolOutput
from pydantic import Field

from aligner_chain.llama_index.memory import saying
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor


class AlignerFunctionAgent(FunctionAgent):
    """A `FunctionAgent` whose answers are corrected: `AlignerFunctionAgent(tools=tools, llm=llm, postprocessor=...)`.

    The Aligner reads the conversation, the answer and what the tools found. Result, `AgentOutput` event and memory hold
    the corrected answer; one whose correction is raised is in none of them. Turns that call a tool pass.

    Args:
        postprocessor: how to correct. Default: `AlignerResponsePostprocessor()`.
        streaming: False, unlike LlamaIndex's own: the corrected answer is then one `AgentStream` event. With True those
            events show what the model writes, before it was corrected.
        kwargs: all other settings are those of a `FunctionAgent`.
    """

    postprocessor: AlignerResponsePostprocessor = Field(default_factory=AlignerResponsePostprocessor)

    def __init__(self, *, streaming: bool = False, **kwargs: Any) -> None:
        super().__init__(streaming=streaming, **kwargs)

    async def take_step(
        self, ctx: Any, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        before = list(await ctx.store.get(self.scratchpad_key, default=[]))
        output = await super().take_step(ctx, llm_input, tools, memory)
        if output.tool_calls:
            return output
        await ctx.store.set(self.scratchpad_key, before)  # If the correction is raised, nobody was given this step.
        text = await _corrected(self.postprocessor, ctx, llm_input, output.response.content)
        message = saying(output.response, text)
        await ctx.store.set(self.scratchpad_key, [*before, message])
        _tell(self, ctx, text)
        return output.model_copy(update={"response": message, "raw": None})


class AlignerReActAgent(ReActAgent):
    """A `ReActAgent` whose answers are corrected, as an `AlignerFunctionAgent`'s are. What it thought is not.

    Args:
        postprocessor: how to correct. Default: `AlignerResponsePostprocessor()`.
        streaming: False, unlike LlamaIndex's own: the corrected answer is then one `AgentStream` event. With True those
            events show what the model writes, before it was corrected.
        kwargs: all other settings are those of a `ReActAgent`.
    """

    postprocessor: AlignerResponsePostprocessor = Field(default_factory=AlignerResponsePostprocessor)

    def __init__(self, *, streaming: bool = False, **kwargs: Any) -> None:
        super().__init__(streaming=streaming, **kwargs)

    async def take_step(
        self, ctx: Any, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        before = list(await ctx.store.get(self.reasoning_key, default=[]))
        output = await super().take_step(ctx, llm_input, tools, memory)
        if output.tool_calls or output.retry_messages:
            return output
        last = (await ctx.store.get(self.reasoning_key))[-1]
        await ctx.store.set(self.reasoning_key, before)
        text = await _corrected(self.postprocessor, ctx, llm_input, last.response)
        last = last.model_copy(update={"response": text})
        await ctx.store.set(self.reasoning_key, [*before, last])
        _tell(self, ctx, text)
        return output.model_copy(update={"response": saying(output.response, last.get_content()), "raw": None})


async def _corrected(
    postprocessor: AlignerResponsePostprocessor, ctx: Any, llm_input: Sequence[ChatMessage], answer: str | None
) -> str:
    # The names in the store are LlamaIndex's own and not documented.
    calls = await ctx.store.get("current_tool_calls", default=[])
    response = Response(answer, source_nodes=[node for call in calls for node in _found(call.tool_output)])
    question = await ctx.store.get("user_msg_str")
    corrected = await postprocessor.apostprocess_response(response, query_str=question, chat_history=llm_input[:-1])
    return corrected.response or ""


def _found(output: ToolOutput) -> list[NodeWithScore]:
    """The nodes behind a tool's answer, or its answer as one."""
    if isinstance(output.raw_output, Response):
        return output.raw_output.source_nodes
    return [NodeWithScore(node=TextNode(text=output.content))]


def _tell(agent: FunctionAgent | ReActAgent, ctx: Any, text: str) -> None:
    if not agent.streaming:
        ctx.write_event_to_stream(AgentStream(delta=text, response=text, current_agent_name=agent.name))
