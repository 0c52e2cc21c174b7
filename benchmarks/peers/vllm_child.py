"""vLLM behind a pipe, for run.py: it lives in an environment of its own, so nothing of this package is imported here.

    VLLM-PYTHON benchmarks/peers/vllm_child.py FOLDER '{"window": 384, "ends": [1, 2], "speculative": null}'

Says in one line of JSON what it is; then each line of requests gets a line with what was written and what it took.
`speculative` is vLLM's `speculative_config`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, Any]

# One process and one thread, whose processor time is all that vLLM takes. The n-gram proposer runs on Numba, which would
# else have OpenMP use all cores for the model as well: on two busy ones that made everything twenty times slower.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "NUMBA_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def serve(make: Callable[[Counter], Any]) -> None:
    """Answers until the pipe is closed. What libraries print goes to stderr, not among the answers."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        count = Counter()
        engine = make(count)
        print(json.dumps(engine.about()), file=answers)
        for line in sys.stdin:
            print(json.dumps(timed(engine.decode, json.loads(line), count)), file=answers)


def timed(decode: Callable[[Message], list[list[int]]], request: Message, count: Counter) -> Message:
    before, cpu, wall = count.forwards, time.process_time(), time.perf_counter()
    outputs = decode(request)
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {"outputs": outputs, "forwards": count.forwards - before, **spent}


class Counter:
    """Counts the forwards of the models that it watches."""

    def __init__(self) -> None:
        self.forwards = 0

    def watch(self, model: Any) -> None:
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1


class VLLM:
    """The engine with what suits a model this small: all rows fit, and texts are neither read nor written."""

    def __init__(self, folder: str, given: Mapping[str, Any], count: Counter) -> None:
        from vllm import LLM

        self._ends = given["ends"]
        self._llm = LLM(
            folder,
            dtype="float32",
            max_model_len=given["window"],
            max_num_seqs=given.get("rows", 8),
            skip_tokenizer_init=True,
            speculative_config=given["speculative"],
        )
        self._llm.apply_model(count.watch)

    def decode(self, request: Message) -> list[list[int]]:
        from vllm import SamplingParams

        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
            [
                SamplingParams(temperature=0, max_tokens=most, stop_token_ids=self._ends, detokenize=False)
                for most in request["max_new"]
            ],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    @staticmethod
    def about() -> Message:
        import torch
        import transformers
        import vllm

        versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        return {"versions": versions, "threads": torch.get_num_threads()}


def main() -> None:
    folder, given = sys.argv[1:]
    serve(lambda count: VLLM(folder, json.loads(given), count))


if __name__ == "__main__":
    main()
