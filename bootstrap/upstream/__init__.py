"""Direct preference optimisation of the upstream (Rafailov et al. 2023, arXiv 2305.18290): pairs in, candidate out.

The chosen answer is mostly a copy of the rejected one. On such pairs the sigmoid loss alone lowers the likelihood of
both (Pal et al. 2024, arXiv 2402.13228), so the likelihood of the chosen answer is part of the loss by default
(Pang et al. 2024, arXiv 2404.19733), and the loss looks at what was edited (`bootstrap.upstream.collator`).
"""

from __future__ import annotations

from bootstrap.upstream.collator import EditSpanCollator, edit_masks
from bootstrap.upstream.memory import MemoryEstimate, check_memory, estimate_memory
from bootstrap.upstream.rows import Selection, preference_rows, select_rows
from bootstrap.upstream.settings import LORA, DPOSettings
from bootstrap.upstream.training import TrainedUpstream, save_model, train_selected, train_upstream

__all__ = [
    "LORA",
    "DPOSettings",
    "EditSpanCollator",
    "MemoryEstimate",
    "Selection",
    "TrainedUpstream",
    "check_memory",
    "edit_masks",
    "estimate_memory",
    "preference_rows",
    "save_model",
    "select_rows",
    "train_selected",
    "train_upstream",
]
