"""A model and its tokenizer from a folder or a hub id: safetensors only, no remote code, no hidden download."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

ADAPTER = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load(path: str | Path, *, revision: str | None, device: str, dtype: str) -> tuple[PreTrainedModel, Tokenizer]:
    """The model, ready to decode, and its tokenizer. A folder with a PEFT adapter gives base and adapter merged.

    Raises `CheckpointError` for a folder that is missing, broken or incomplete, and `MissingExtraError`.
    """
    require_local()
    folder = local_folder(path, revision)
    return _placed(folder, _adapted if (folder / ADAPTER).exists() else _plain, device, dtype)


def load_classifier(
    path: str | Path, *, revision: str | None, device: str, dtype: str
) -> tuple[PreTrainedModel, Tokenizer]:
    """The same for a sequence classifier. A model without a trained head for one is refused with `CheckpointError`."""
    require_local()
    return _placed(local_folder(path, revision), _classifier, device, dtype)


def require_local() -> None:
    """Raises `MissingExtraError` where a package of the extra `local` is not installed."""
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "local") from error


def _placed(
    folder: Path, read: Callable[[Path, torch.dtype], tuple[PreTrainedModel, Tokenizer]], device: str, dtype: str
) -> tuple[PreTrainedModel, Tokenizer]:
    import torch

    placed = pick_device(device)
    with translated(folder):
        model, tokenizer = read(folder, pick_dtype(dtype, placed))
    return model.to(torch.device(placed)).eval(), tokenizer


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder at `path`, or the local copy of a hub id, which is downloaded if need be.

    Raises `CheckpointError` where there is neither, and `MissingExtraError` for a hub id without huggingface_hub.
    """
    folder = existing_folder(path)
    if folder is not None:
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        why = f"There is no folder {path} in {Path.cwd()}, and to download it, should it be a hub id: "
        raise MissingExtraError("huggingface_hub", "local", why) from error
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=_WANTED, ignore_patterns=["*/*"]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"There is no folder {path} in {Path.cwd()}, and no model of that name could be taken from the hub: {error}\n"
            'Ways out: check the path or the id ("organisation/name"), make an Aligner with  aligner-bootstrap demo  or  '
            "aligner-bootstrap train-aligner; a hub id needs the network once, or an earlier download."
        ) from error


def existing_folder(path: str | Path) -> Path | None:
    """The folder that is meant, or None for a hub id. Raises `CheckpointError` for a folder that is not there."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    looks_like_hub_id = isinstance(path, str) and path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_hub_id:
        raise CheckpointError(
            f"There is no model folder at {folder}. Ways out: check the path, give a hub id such as "
            '"organisation/name", or make an Aligner with  aligner-bootstrap demo  or  aligner-bootstrap train-aligner.'
        )
    return None


def pick_device(device: str) -> str:
    """Resolves "auto": CUDA when there is one, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """Resolves "auto": bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU; else a name of torch's."""
    import torch

    if dtype == "auto":
        half = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float16
        return half if device.startswith("cuda") else torch.float32
    chosen = getattr(torch, dtype, None)
    if not isinstance(chosen, torch.dtype):
        raise CheckpointError(f'dtype={dtype!r} is unknown; use "auto", "float32", "bfloat16" or "float16".')
    return chosen


def _plain(place: str | Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_safetensors=True, **_LOCAL)
    return model, read_tokenizer(place)


def _classifier(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    from transformers import AutoModelForSequenceClassification

    model, found = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
    )
    # transformers draws at random what a folder lacks, and a random head gives scores that look like any others.
    if lacking := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{folder} is no trained sequence classifier: it lacks {', '.join(lacking[:3])}. Ways out: name a model that "
            "was trained for AutoModelForSequenceClassification, or train its head first."
        )
    return model, read_tokenizer(folder)


def read_tokenizer(place: str | Path) -> Tokenizer:
    """The tokenizer in a folder. Raises `CheckpointError` where there is none."""
    from transformers import AutoTokenizer

    # Without any of its files transformers may build an empty tokenizer, which turns every text into nothing.
    if isinstance(place, Path) and not has_tokenizer(place):
        raise CheckpointError(
            f"{place} holds no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}, ...). Ways out: copy the tokenizer's files "
            "of the base model into the folder, or build the engine from objects: HuggingFaceEngine(model, tokenizer)."
        )
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(place, **_LOCAL)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds any file that a tokenizer is made of."""
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _adapted(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "train") from error
    adapter_weights(folder)
    base = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    # The caller named the adapter and not its base, so the base is not downloaded: it must be here already.
    model, tokenizer = _plain(Path(base) if Path(base).is_dir() else base, dtype)
    if has_tokenizer(folder):
        tokenizer = read_tokenizer(folder)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return merged, tokenizer


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's weights. Raises `CheckpointError` where there is none that can be read without danger."""
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise CheckpointError(
            f"{folder} holds {ADAPTER} but no {weights.name}; other formats can run code and are not read. "
            "Save the adapter anew with PEFT's save_pretrained (safe_serialization is its default)."
        )
    return weights


@contextmanager
def translated(place: str | Path) -> Iterator[None]:
    """Turns what loading raises into a `CheckpointError` with the ways out."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError | MissingExtraError):
            raise
        raise CheckpointError(
            f"{place} could not be loaded: {error}\nWays out: check that it is a complete Hugging Face model with "
            "config.json and safetensors weights (pickled weights and remote code are not loaded); a hub id needs the "
            "network once, or an earlier download."
        ) from error
