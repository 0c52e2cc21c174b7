"""README and docs as a reader takes them: what is typed runs or parses, what is linked is there, what is listed is whole.

Most pages have a test of their own beside the subject; `ELSEWHERE` names those. Here are the others, and what holds for all.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import by_heart
import pytest
from completions_server import CompletionsServer
from llama_docs import ShopModel
from pages import examples
from proxying import proxy, saying, upstream
from upstreams import StreamingUpstream

import aligner_chain.cli
import bootstrap.cli
from aligner_chain import Aligner, Exchange
from aligner_chain.engines.huggingface import HuggingFaceEngine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "annotating.md", "evaluation.md", "feedback.md", "gates.md", "judges.md", "langchain.md", "llama_index.md", "privacy.md", "quality.md",
    "registry.md", "rounds.md", "scheduling.md", "training_data.md",
}  # fmt: skip
HERE = ["README.md", "bring_your_own.md", "collecting.md", "migrating.md", "proxy.md", "quickstart.md", "serving.md"]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = {"aligner-chain": aligner_chain.cli._parser, "aligner-bootstrap": bootstrap.cli._parser}
COMMAND = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?((?:aligner-chain|aligner-bootstrap) [^\n#|>]*)", re.MULTILINE
)


def test_every_page_with_examples_is_run_by_a_test() -> None:
    with_examples = {page.name for page in PAGES if examples(page)}
    assert with_examples == ELSEWHERE | set(HERE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_site_can_read_every_fence(page: Path) -> None:
    """One with a second word it takes for text, and so all that follows."""
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    fences = re.findall(r"^ *```.*$", hooks["on_page_markdown"](page.read_text(encoding="utf-8")), re.MULTILINE)
    assert [one for one in fences if not re.fullmatch(r" *```\w*", one)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        for typed in COMMAND.findall(text.replace("\\\n", " ")) if language in {"", "bash", "console", "sh"} else ():
            program, *arguments = shlex.split(typed)
            if "COMMAND" not in typed and "..." not in arguments:
                parse(program, arguments)


def parse(program: str, arguments: list[str]) -> None:
    if "--help" not in arguments:
        PROGRAMS[program]().parse_args(arguments)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"], ids=lambda page: page.name
)
def test_what_is_linked_is_there(page: Path) -> None:
    """Of the pages under docs, the build of the site says so."""
    for place in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert place.startswith("https://") or (ROOT / place).exists(), place


def test_every_variable_of_the_environment_is_listed() -> None:
    """But for those by which a training's own processes are told of each other."""
    sources = [
        path.read_text("utf-8") for folder in ("aligner_chain", "bootstrap") for path in (ROOT / folder).rglob("*.py")
    ]
    used = {name for source in sources for name in re.findall(r'"(ALIGNER_(?!TRAINING_)[A-Z_]+)"', source)}
    listed = re.findall(r"^\| `(ALIGNER_\w+)`", (ROOT / "docs" / "configuration.md").read_text("utf-8"), re.MULTILINE)
    assert used == set(listed)


@pytest.mark.parametrize("name", HERE)
def test_the_examples_run(name: str, world: dict[str, Any], stand_in: Callable[[str], str]) -> None:
    page = next(page for page in PAGES if page.name == name)
    for example in examples(page):
        world["llm"] = ShopModel() if "llama_index" in example else StreamingUpstream()
        exec(compile(stand_in(example), str(page), "exec"), world)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[[], Any]) -> Path:
    """An Aligner that always says "No."."""
    return by_heart.always(tmp_path_factory.mktemp("aligner"), make_tokenizer(), "No.")


@pytest.fixture
def stand_in(checkpoint: Path) -> Iterator[Callable[[str], str]]:
    """Puts servers and folders of this machine in the place of the page's."""
    with ExitStack() as stack:
        engine = HuggingFaceEngine.from_pretrained(checkpoint, device="cpu", dtype="float32")
        servers = [stack.enter_context(CompletionsServer(engine, root=str(checkpoint))).url for _ in range(2)]
        behind = stack.enter_context(upstream(saying({"role": "assistant", "content": "a bad answer"})))
        there = {
            "http://gpu:8000/v1": servers[0],
            "http://gpu1:8000/v1": servers[0],
            "http://gpu2:8000/v1": servers[1],
            "http://127.0.0.1:8800/v1": stack.enter_context(proxy(behind.url)),
            "path/to/my-aligner": str(checkpoint),
            "path/to/aligner": str(checkpoint),
        }
        yield lambda text: re.sub(
            "|".join(map(re.escape, sorted(there, reverse=True))), lambda one: there[one[0]], text
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path) -> dict[str, Any]:
    """What the pages take as given: models, an index, an application that is being built, an empty folder."""
    import certifi
    from langchain.agents import create_agent
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    from langgraph.graph import MessagesState, StateGraph
    from llama_index.core import Document, Settings, SummaryIndex

    monkeypatch.setattr(Settings, "_llm", None)  # the pages set it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNER_MODEL", str(checkpoint))
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    shutil.copy(certifi.where(), "ca.pem")
    Path("template-dataset.json").write_text('[{"question": "q", "answer": "a", "correction": "b"}]', encoding="utf-8")
    index = SummaryIndex.from_documents([Document(text="A kettle can be returned for 14 days.")])
    scripted = Aligner.scripted(lambda exchange: exchange.answer.replace("bad", "good"))
    return {
        "other_llm": FakeListChatModel(responses=["KEEP"]),
        "prompt": ChatPromptTemplate.from_messages([("human", "{question}")]),
        "create_agent": create_agent,
        "tools": [],
        "builder": StateGraph(MessagesState),
        "index": index,
        "query_engine": index.as_query_engine(llm=ShopModel()),
        "aligner": scripted,
        "correction": scripted.correct([Exchange.of("q", "a bad answer")])[0],
    }
