"""A node of a LangGraph graph that corrects the answer in its state, or asks a chat model and corrects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableLambda

from aligner_chain.langchain.context import hidden
from aligner_chain.langchain.corrector import AlignerCorrector, required


def aligner_node(
    corrector: AlignerCorrector, *, llm: Runnable[Any, Any] | None = None, messages_key: str = "messages"
) -> Runnable[Any, dict[str, list[AIMessage]]]:
    """A node for `StateGraph.add_node`, for `invoke` and `ainvoke` alike.

    With `llm` the node asks it and corrects its answer: the uncorrected text never enters the state, and is in no message
    stream of the graph. Without, it corrects the last message of the state, which keeps its id, so that `add_messages` puts
    it in the answer's place; what an earlier node streamed or wrote into a checkpoint has been seen by then. The question
    is the conversation before the answer, so no recorder is needed. Tool calls pass.

    Args:
        corrector: what corrects the answer.
        llm: a chat model, also with tools bound to it.
        messages_key: where the state holds the conversation.

    Raises:
        TypeError: `corrector` is none; when run: the state holds no messages, or without `llm` does not end in an answer.

    ??? example "A graph of one node"

        ```python
        builder = StateGraph(MessagesState)
        builder.add_node("answer", aligner_node(AlignerCorrector(), llm=llm))
        builder.add_edge(START, "answer")
        ```
    """
    required(corrector)

    def run(state: Any) -> dict[str, list[AIMessage]]:
        messages = _messages(state, messages_key, answered=llm is None)
        if llm is not None:
            with hidden():
                messages = [*messages, llm.invoke(messages)]
        return {messages_key: [corrector.invoke(messages)]}

    async def arun(state: Any) -> dict[str, list[AIMessage]]:
        messages = _messages(state, messages_key, answered=llm is None)
        if llm is not None:
            with hidden():
                messages = [*messages, await llm.ainvoke(messages)]
        return {messages_key: [await corrector.ainvoke(messages)]}

    return RunnableLambda(run, arun, name="aligner_node")


def _messages(state: Any, key: str, *, answered: bool) -> Sequence[BaseMessage]:
    """The conversation in a state that is a mapping, an object or the list itself."""
    found = (
        state
        if isinstance(state, list)
        else state.get(key)
        if isinstance(state, Mapping)
        else getattr(state, key, None)
    )
    if not isinstance(found, list):
        raise TypeError(
            f'The state holds no list of messages under "{key}". Name the place:  aligner_node(corrector, messages_key=...)'
        )
    if answered and not (found and isinstance(found[-1], AIMessage)):
        last = type(found[-1]).__name__ if found else "nothing"
        raise TypeError(
            f"The conversation ends in {last}, not in an answer. Put the node right behind the one that asks the model, or "
            "let it ask itself:  aligner_node(corrector, llm=llm)"
        )
    return found
