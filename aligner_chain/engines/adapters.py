"""Adapters (PEFT) over one model in this process: any number by name, of which one is active during a forward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.engines.loading import ADAPTER, adapter_weights, has_tokenizer, read_tokenizer, translated
from aligner_chain.errors import CapabilityError, CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapters:
    """The adapters of a model, which stays in place. Only the thread that owns the model may call `load`, `use` and `remove`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._slots: dict[str, str] = {}  # PEFT takes names as names of modules: no dots
        self._leaving: set[str] = set()
        self._layers: list[Any] = []
        self._made, self._active = 0, ""

    @staticmethod
    def possible() -> bool:
        return find_spec("peft") is not None

    def require(self, name: str | None) -> None:
        """Raises `CapabilityError` for a name that new requests cannot have."""
        if name is not None and (name not in self._slots or name in self._leaving):
            there = ", ".join(sorted(self._slots.keys() - self._leaving)) or "none"
            raise CapabilityError(
                f'The engine has no adapter "{name}" (there: {there}). Load it first: engine.load("{name}", folder).'
            )

    def load(self, name: str, folder: Path) -> None:
        """Adds the adapter in `folder`. Raises `CheckpointError` where it does not fit, and `MissingExtraError`."""
        if name in self._slots:
            raise CapabilityError(
                f'The engine has an adapter "{name}" already, and a name never changes its meaning. Give the new one a '
                "name of its own, such as name@version."
            )
        if not self.possible():
            raise MissingExtraError("peft", "train")
        self._check_tokens(folder)
        slot = f"adapter_{self._made}"
        self._made += 1
        try:
            with translated(folder), _unwarned():
                self._add(slot, folder)
        finally:
            self._reset()
        self._slots[name] = slot

    def use(self, name: str | None) -> None:
        """Makes the next forwards those of an adapter; None: of the model by itself."""
        slot = "" if name is None else self._slots[name]
        if slot == self._active:
            return
        # Not by the model's own `set_adapter`, which fails where another adapter has modules of its own that this one has not.
        for layer in self._layers:
            there = slot in getattr(layer, "modules_to_save", (slot,))
            layer.enable_adapters(enabled=bool(slot) and there)
            if slot and there:
                layer.set_adapter(slot)
        self._active = slot

    def leave(self, name: str) -> None:
        """Lets no new request have it."""
        self.require(name)
        self._leaving.add(name)

    def remove(self, name: str) -> None:
        """Frees it. No request may have it any more."""
        slot = self._slots.pop(name)
        self._leaving.discard(name)
        self._delete(slot)
        self._reset()

    def _add(self, slot: str, folder: Path) -> None:
        weights = adapter_weights(folder)
        try:
            self._model.load_adapter(str(folder), adapter_name=slot)
            self._check_whole(slot, weights)
        except Exception:
            if slot in getattr(self._model, "peft_config", {}):
                self._delete(slot)
            raise

    def _delete(self, slot: str) -> None:
        with _unwarned():
            self._model.delete_adapter(slot)

    def _reset(self) -> None:
        """Finds the layers that adapters are in, and has none active."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        kinds = BaseTunerLayer, ModulesToSaveWrapper
        self._layers = [module for module in self._model.modules() if isinstance(module, kinds)]
        self._active = "unknown"
        self.use(None)

    def _check_tokens(self, folder: Path) -> None:
        if not (folder / ADAPTER).exists():
            raise CheckpointError(
                f"{folder} is no adapter: it holds no {ADAPTER}. A whole model is an engine of its own."
            )
        known = self._model.get_input_embeddings().weight.shape[0]
        wanted = len(read_tokenizer(folder)) if has_tokenizer(folder) else 0
        if wanted > known:
            raise CheckpointError(
                f"The tokenizer beside the adapter in {folder} has {wanted} tokens, the model {known}. Ways out: load the "
                "folder as an engine of its own (HuggingFaceEngine.from_pretrained merges base and adapter), or train "
                "the adapter on a base that has these tokens."
            )

    def _check_whole(self, slot: str, weights: Path) -> None:
        """What has no place in the model is left out without an error, and the adapter would be another one."""
        from safetensors import safe_open

        with safe_open(weights, framework="pt") as file:
            stored = len(list(file.keys()))
        placed = sum(slot in name.split(".") for name, _ in self._model.named_parameters())
        if stored != placed:
            raise CheckpointError(
                f"{weights} holds {stored} tensors, of which the model has a place for {placed}. Was the adapter trained on "
                "another base model? Its adapter_config.json names the one."
            )


@contextmanager
def _unwarned() -> Iterator[None]:
    """PEFT warns of a second adapter, and of another one that becomes active; both are meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
