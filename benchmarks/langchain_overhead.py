"""What the LangChain face costs beside the model: the recorder per invoke, and the component against a RunnableLambda.

    python benchmarks/langchain_overhead.py [--rounds 5] [--blocks 150]

Both sides of a pair are measured in blocks of 20 calls that take turns, in one process and one thread. A round counts its
best block of each side, since whatever else runs on the machine only ever adds; of the rounds the best counts, and the
median stands beside it. Prints a table and writes benchmarks/results/langchain_overhead.json.
Budgets: at most 60 microseconds for the recorder, at most 1.5 times the RunnableLambda for the component.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult, Generation, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.version import VERSION
from stored import write

from aligner_chain import Aligner, __version__
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Capabilities, Request, Ticket
from aligner_chain.engines.base import Generation as Written
from aligner_chain.langchain import AlignerCorrector
from aligner_chain.langchain import recorder as recording


class Canned(BaseChatModel):
    """A chat model that takes no time."""

    @property
    def _llm_type(self) -> str:
        return "canned"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("an answer"))])


class Idle(BaseCallbackHandler):
    """Hears of every run and does nothing."""

    run_inline = True

    def on_chat_model_start(self, *given: Any, **kw: Any) -> None:
        """Nothing."""


class Immediate:
    """An engine that takes no time and needs no thread: it approves everything."""

    capabilities = Capabilities(tokens=False)

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        tickets = [Ticket(request) for request in requests]
        for ticket in tickets:
            text = ticket.request.exchange.answer if ticket.request.exchange else ""
            ticket.future.set_result(Written(key=ticket.request.key, text=text, approved=True))
        return tickets

    def load(self, adapter: str, path: Path) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def nested_run(message: AIMessage, config: RunnableConfig) -> AIMessage:
    """What anybody would write who wants a step with a text model's run in the trace."""
    manager = CallbackManager.configure(config.get("callbacks"), inheritable_tags=["mine"])
    [run] = manager.on_llm_start({"name": "mine"}, [str(message.text)], name="mine", invocation_params={})
    run.on_llm_end(LLMResult(generations=[[Generation(text=str(message.text))]]))
    return message


CALLS = 20


def block(call: Callable[[], object]) -> float:
    """Microseconds of one call, over a block of them."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int, blocks: int) -> list[list[float]]:
    """The best block of each side in every round."""
    pairs = [[(block(first), block(second)) for _ in range(blocks)] for _ in range(rounds + 1)]
    best = [[min(side) for side in zip(*turns, strict=True)] for turns in pairs[1:]]  # the first round warms up
    return [list(side) for side in zip(*best, strict=True)]


def recorder_cost(rounds: int, blocks: int) -> dict[str, Any]:
    """Beside the recorder, what any callback handler costs that does nothing: LangChain's own part of it."""
    chain = ChatPromptTemplate.from_template("{q}") | Canned()
    recording.recorder()

    def asked(handler: Any) -> Callable[[], object]:
        context = copy_context()
        context.run(recording._HOOK[0].set, handler)
        return lambda: context.run(chain.invoke, {"q": "q"})

    bare, recorded = in_turns(asked(None), asked(recording.recorder()), rounds, blocks)
    bare_again, idle = in_turns(asked(None), asked(Idle()), rounds, blocks)
    # The best of each side: a difference within one round would gain where only its bare side was disturbed.
    cost = min(recorded) - min(bare)
    return {
        "without_us": bare,
        "with_us": recorded,
        "cost_us": cost,
        "idle_handler_cost_us": min(idle) - min(bare_again),
        "budget_us": 60,
        "met": cost <= 60,
    }


def component_cost(rounds: int, blocks: int) -> dict[str, Any]:
    metadata = AlignerMetadata(name="immediate", version="1", template="none")
    corrector = AlignerCorrector(Aligner(Immediate(), metadata=metadata), question="q")
    yardstick, message = RunnableLambda(nested_run), Canned().invoke("q")
    lambdas, ours = in_turns(lambda: yardstick.invoke(message), lambda: corrector.invoke(message), rounds, blocks)
    ratio = min(ours) / min(lambdas)
    return {"lambda_us": lambdas, "component_us": ours, "ratio": ratio, "budget_ratio": 1.5, "met": ratio <= 1.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=150, help="of 20 calls, a side and round")
    arguments = parser.parse_args()
    result = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "langchain_core": VERSION,
        "aligner_chain": __version__,
        "rounds": arguments.rounds,
        "blocks": arguments.blocks,
        "recorder": recorder_cost(arguments.rounds, arguments.blocks),
        "component": component_cost(arguments.rounds, arguments.blocks),
    }
    write("langchain_overhead", result)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    recorder, component = result["recorder"], result["component"]
    rows = {
        "prompt | model": recorder["without_us"],
        "prompt | model, recorder on": recorder["with_us"],
        "RunnableLambda with a nested run": component["lambda_us"],
        "AlignerCorrector": component["component_us"],
    }
    lines = [f"{name:<34} best {min(us):7.2f}   median {statistics.median(us):7.2f} us" for name, us in rows.items()]
    lines.append(
        f"the recorder costs {recorder['cost_us']:.1f} us an invoke (budget 60), "
        f"a handler that does nothing {recorder['idle_handler_cost_us']:.1f} us"
    )
    lines.append(f"the component costs {component['ratio']:.2f} times the RunnableLambda (budget 1.5)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
