"""The configurations of `accelerate launch` that come with the package, by name, and what a file of one says.

    one_gpu     one process
    ddp         several GPUs of one machine, each with the whole model
    fsdp2       several GPUs, over which the model is divided by PyTorch
    zero3       the same by DeepSpeed
    two_nodes   the GPUs of two machines

They are short, and meant to be copied and changed: accelerate reads any file of `accelerate config` as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner_chain.errors import ConfigurationError

CONFIGURATIONS = ("one_gpu", "ddp", "fsdp2", "zero3", "two_nodes")
_FOLDER = Path(__file__).parent / "accelerate"


def configuration(named: str | Path) -> Path:
    """The file that is meant: of the package by its name, or any other by its path.

    Raises:
        ConfigurationError: it is neither.
    """
    if str(named) in CONFIGURATIONS:
        return _FOLDER / f"{named}.yaml"
    path = Path(named)
    if not path.is_file():
        raise ConfigurationError(
            f"There is no file {path}, nor is it one of {', '.join(CONFIGURATIONS)}. "
            f"Write one:  accelerate config --config_file {path}"
        )
    return path.absolute()


def process_count(file: Path, processes: int | None) -> int:
    """How many processes train together, over all machines: those asked for, else those of the file, else one per GPU.

    Raises:
        ConfigurationError: nobody says how many, the file cannot be read, or it is for one process and more are asked for.
    """
    found = _read(file)
    alone = _kind(found) == "NO"
    if alone and (processes or 1) > 1:
        raise ConfigurationError(
            f"{file} starts one process (distributed_type is NO), and {processes} are asked for. Name another: ddp, fsdp2."
        )
    if alone or processes is not None:
        return processes or 1
    if found.num_processes > 0:
        return int(found.num_processes)
    import torch

    if not (gpus := torch.cuda.device_count()):
        raise ConfigurationError(
            f"{file} does not say how many processes train, and there is no GPU here to count. Give processes."
        )
    return gpus * int(found.num_machines)


def divides_model(file: Path) -> bool:
    """Whether the file names a launch that divides the model among its processes."""
    return _kind(_read(file)) in ("FSDP", "DEEPSPEED")


def _kind(found: Any) -> str:
    return str(getattr(found.distributed_type, "value", found.distributed_type))


def _read(file: Path) -> Any:
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        return load_config_from_file(str(file))
    except Exception as error:  # whatever its parsers and its own checks raise
        raise ConfigurationError(f"{file} is no configuration of accelerate: {error}") from error
