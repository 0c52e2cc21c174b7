"""Whole weights of an adapter and its base, for where no adapter can be loaded."""

from __future__ import annotations

from pathlib import Path

from bootstrap.errors import RegistryError
from bootstrap.sft import merged, quiet_network


def merge_adapter(folder: Path, out: Path, *, base: str | None) -> None:
    """Writes base and adapter as one model, in the base's precision, with the adapter's tokenizer.

    Nothing is downloaded: a base of the Hub must be in this machine's cache.

    Args:
        folder: the adapter's.
        out: an empty folder.
        base: the base's folder or name.

    Raises:
        RegistryError: the base is not known, not on this machine, or no safetensors.
    """
    quiet_network()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if base is None:
        raise RegistryError(f"{folder} does not say which base its adapter is for. Name it:  --base PATH")
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True, use_safetensors=True)
    except OSError as error:
        raise RegistryError(
            f"The base {base} of {folder} cannot be loaded from this machine: {error}\n"
            f"Download it first:  hf download {base}\nOr name its folder:  --base PATH"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    merged(PeftModel.from_pretrained(model, folder)).save_pretrained(out)
    tokenizer.save_pretrained(out)
