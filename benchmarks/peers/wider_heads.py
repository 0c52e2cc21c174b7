"""The same model with attention heads of another width, for engines that know only some widths.

Heads of 24 become heads of 32: zeros are added where they change nothing, the rotary frequencies stay those of the
24, and queries are scaled for what attention divides by. Only rounding differs.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

KNOWN = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The widths that vLLM's attention on the CPU takes."""


def widened(folder: Path, target: Path) -> Path:
    """The folder itself where its Llama has heads of a known width, else `target` with a copy that has.

    Raises `ValueError` for a model of another kind.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    old = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if old in KNOWN:
        return folder
    if config["model_type"] != "llama":
        message = f"{folder}: heads of {old} are widened only in a Llama, this is {config['model_type']}."
        raise ValueError(message)
    new = next(width for width in KNOWN if width > old)
    shutil.copytree(folder, target, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    wide = {name: _widened(name, weight, old, new) for name, weight in weights.items()}
    save_file(wide, target / "model.safetensors", metadata={"format": "pt"})
    config["head_dim"] = new
    # Frequency i is theta ** (-2 * i / width), which has to stay what it was.
    config["rope_parameters"]["rope_theta"] **= new / old
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return target


def _widened(name: str, weight: torch.Tensor, old: int, new: int) -> torch.Tensor:
    layer = name.split(".")[-2]
    if layer in ("q_proj", "k_proj"):
        # Place i is turned together with place i + width / 2, so each half gets zeros of its own.
        scaled = weight * math.sqrt(new / old) if layer == "q_proj" else weight
        return _padded(scaled, old // 2, new // 2)
    if layer == "v_proj":
        return _padded(weight, old, new)
    if layer == "o_proj":
        return _padded(weight.T, old, new).T.contiguous()
    return weight


def _padded(weight: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Zeros behind every `old` rows, so that there are `new` of them."""
    grouped = weight.unflatten(0, (-1, old))
    zeros = grouped.new_zeros(len(grouped), new - old, *grouped.shape[2:])
    return torch.cat([grouped, zeros], dim=1).flatten(0, 1)
