"""What `aligner-chain doctor` looks at: versions, extras, device, what is served and whether it loads.

It downloads nothing: an Aligner that is not a folder on this machine is named, not loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from aligner_chain import serving
from aligner_chain.errors import AlignerError

EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "langchain": ("langchain-core",),
        "agents": ("langchain-core", "langchain"),
        "llama-index": ("llama-index-core",),
        "local": ("torch", "transformers", "safetensors"),
        "server": ("httpx", "tokenizers"),
        "proxy": ("httpx", "tokenizers", "httpcore", "starlette", "uvicorn", "prometheus-client"),
        "otel": ("opentelemetry-api",),
        "collect": ("SQLAlchemy", "alembic", "datasketch"),
        "postgres": ("SQLAlchemy", "alembic", "datasketch", "psycopg"),
        "review": ("SQLAlchemy", "alembic", "datasketch", "gradio"),
        "presidio": ("presidio-analyzer",),
        "train": ("torch", "transformers", "safetensors", "trl", "peft", "datasets", "accelerate", "cronsim", "tzdata"),
        "demo": (
            *("langchain-core", "llama-index-core", "llama-index-retrievers-bm25", "SQLAlchemy"),
            *("alembic", "datasketch"),
            *("torch", "transformers", "safetensors", "trl", "peft", "datasets", "accelerate", "cronsim", "tzdata"),
        ),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was found. `problems` holds one text each; nothing is wrong where it is empty.

    `packages` maps a distribution to its version or None; `device` is None where torch is not installed.
    `aligner` is what `AlignerCorrector()` would use, `loads` whether it did (None: it was not tried).
    """

    version: str
    python: str
    packages: Mapping[str, str | None]
    device: str | None
    home: str
    pair: str | None
    upstream: str | None
    aligner: str | None
    loads: bool | None
    problems: tuple[str, ...]

    def has(self, extra: str) -> bool:
        """Whether every package of an extra is installed."""
        return all(self.packages[name] is not None for name in EXTRAS[extra])


def diagnose(version: str) -> Diagnosis:
    """Looks at this machine. `version` is that of aligner-chain."""
    problems: list[str] = []
    served = _served(problems)
    aligner = _resolved(problems)
    return Diagnosis(
        version=version,
        python=f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        packages={name: _version(name) for names in EXTRAS.values() for name in names},
        device=_device(problems),
        home=str(serving.home()),
        pair=served.pair if served else None,
        upstream=served.upstream.identity if served and served.upstream else None,
        aligner=aligner,
        loads=_loads(aligner, problems),
        problems=tuple(dict.fromkeys(problems)),
    )


def describe(diagnosis: Diagnosis) -> str:
    """The diagnosis as text for a terminal."""
    lines = [f"aligner-chain {diagnosis.version}, {diagnosis.python}", "", "extras"]
    lines += [f"  {extra:<12} {_extra(diagnosis, extra)}" for extra in EXTRAS]
    lines += ["", f"device         {diagnosis.device or 'unknown: torch is not installed'}"]
    lines += [f"ALIGNER_HOME   {diagnosis.home}"]
    lines += [f"served         {_pair(diagnosis)}"]
    lines += [f"Aligner        {diagnosis.aligner or 'none'}{_LOADS[diagnosis.loads] if diagnosis.aligner else ''}"]
    for problem in diagnosis.problems:
        lines += ["", f"problem: {problem}"]
    return "\n".join(lines)


_LOADS = {True: " (loads)", False: " (does not load)", None: " (not a folder here; using it would download it)"}


def _served(problems: list[str]) -> serving.Served | None:
    try:
        return serving.read_served()
    except AlignerError as error:
        problems.append(str(error))
        return None


def _resolved(problems: list[str]) -> str | None:
    try:
        return serving.resolve_aligner()
    except AlignerError as error:
        problems.append(str(error))
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(problems: list[str]) -> str | None:
    if _version("torch") is None:
        return None
    try:
        import torch

        if torch.cuda.is_available():
            return (
                f"cuda: {torch.cuda.get_device_name()}, {torch.cuda.device_count()} in all, CUDA {torch.version.cuda}"
            )
        return f"cpu: {torch.get_num_threads()} threads"
    except Exception as error:  # noqa: BLE001  a broken driver or library raises anything, and is what is looked for
        problems.append(f"torch is installed but does not work: {error}")
        return None


def _loads(aligner: str | None, problems: list[str]) -> bool | None:
    if aligner is None or not Path(aligner).is_dir():
        return None
    from aligner_chain.aligner import Aligner

    try:
        Aligner.from_pretrained(aligner).close()
    except Exception as error:  # noqa: BLE001  whatever keeps it from loading is what is looked for
        problems.append(f"{aligner} does not load: {error}")
        return False
    return True


def _extra(diagnosis: Diagnosis, extra: str) -> str:
    if not diagnosis.has(extra):
        return f"missing    pip install 'aligner-chain[{extra}]'"
    return "installed  " + ", ".join(f"{name} {diagnosis.packages[name]}" for name in EXTRAS[extra])


def _pair(diagnosis: Diagnosis) -> str:
    if diagnosis.pair is None:
        return "nothing"
    upstream = f" with {diagnosis.upstream}" if diagnosis.upstream else ""
    return f"pair {diagnosis.pair}{upstream}"
