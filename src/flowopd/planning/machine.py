"""How many devices there would be, and how much memory each has."""

import os


def devices_here() -> int:
    """What a launcher started, or `accelerate launch` would start now; else 1."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return _accelerate_would_start() or _gpus() or 1


def memory_here() -> int | None:
    """Bytes of the smallest GPU; None where there is none."""
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(_gpus())]
    return min(sizes, default=None)


def _accelerate_would_start() -> int | None:
    """By the file that `accelerate config` writes."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not os.path.isfile(default_config_file):
        return None
    return int(load_config_from_file(None).num_processes)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
