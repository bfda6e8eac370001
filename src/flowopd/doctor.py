"""What is installed here and what can be used: versions, devices, caches, plug-ins."""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from flowopd import plugins
from flowopd.versions import OPTIONAL, PACKAGES, installed_version, versions

GIB = 2**30
Facts = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Facts by section, what keeps models from running here, and what is only worth knowing."""

    sections: dict[str, Facts]
    plugins: list[plugins.Status]
    problems: list[str]
    warnings: list[str]

    def facts(self) -> Facts:
        """Everything, as plain data."""
        return {
            **self.sections,
            "plugins": [status._asdict() for status in self.plugins],
            "problems": self.problems,
            "warnings": self.warnings,
            "usable": not self.problems,
        }


def examine() -> Report:
    """Look at this machine. Loads no weights, and asks no network."""
    problems = [
        f"{name} is not installed; install flowopd with its dependencies (pip install flowopd)."
        for name in PACKAGES
        if installed_version(name) is None
    ]
    sections: dict[str, Facts] = {"versions": _versions()}
    if not problems:
        sections |= {"cpu": _cpu(), "accelerators": _accelerators(), "attention": _attention()}
    sections |= {"disk": _disk(), "hub": _hub()}
    statuses = plugins.check()
    models = [status for status in statuses if status.group == "models"]
    if not any(not status.problem for status in models):
        problems.append(
            "No model family can be used: "
            + (" ".join(status.problem for status in models) or "none is installed.")
        )
    warnings = [status.problem for status in statuses if status.problem]
    return Report(sections, statuses, problems, warnings)


def report_table(report: Report) -> Table:
    """The report for a terminal."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for section, facts in report.sections.items():
        for number, (key, value) in enumerate(facts.items()):
            table.add_row(section if number == 0 else "", key, _text(value))
        table.add_row()
    for number, status in enumerate(report.plugins):
        state = status.problem or "usable"
        table.add_row("plug-ins" if number == 0 else "", f"{status.group}: {status.name}", state)
    table.add_row()
    table.add_row("usable", "no" if report.problems else "yes")
    return table


def _versions() -> Facts:
    optional = {name: installed_version(name) or "not installed" for name in OPTIONAL}
    return {**versions(), **optional, "platform": platform.platform()}


def _cpu() -> Facts:
    import torch

    facts: Facts = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        facts["memory_gib"] = _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return facts


def _accelerators() -> Facts:
    import torch

    facts: Facts = {}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = {
            "name": device.name,
            "memory_gib": _gib(device.total_memory),
            "capability": f"{device.major}.{device.minor}",
            "bf16": device.major >= 8,
        }
    if torch.backends.mps.is_available():
        facts["mps"] = {"name": "Apple GPU", "memory_gib": None, "bf16": _runs_bf16("mps")}
    facts["cuda_build"] = torch.version.cuda or "none"
    return facts


def _attention() -> Facts:
    """Which of torch's kernels run a small attention on the device that would be used."""
    import torch
    from torch.nn.attention import SDPBackend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    usable = {name: _runs(_attend, device, kernel) for name, kernel in kernels.items()}
    return {"device": device, **{name: "usable" if ok else "no" for name, ok in usable.items()}}


def _attend(device: str, kernel: Any) -> None:
    import torch
    from torch.nn.attention import sdpa_kernel

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    query = torch.zeros(1, 2, 16, 64, device=device, dtype=dtype)
    with sdpa_kernel(kernel):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)


def _runs_bf16(device: str) -> bool:
    import torch

    def add() -> None:
        one = torch.ones(2, device=device, dtype=torch.bfloat16)
        (one + one).sum().item()

    return _runs(add)


def _runs(function: Callable[..., None], *arguments: Any) -> bool:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments)
        except (RuntimeError, TypeError, ValueError):
            return False
    return True


def _disk() -> Facts:
    return {"here_free_gib": _gib(shutil.disk_usage(Path.cwd()).free)}


def _hub() -> Facts:
    try:
        from huggingface_hub import constants
    except ImportError:
        return {"installed": False}
    cache = Path(constants.HF_HUB_CACHE)
    facts: Facts = {"cache": str(cache), "offline": bool(constants.HF_HUB_OFFLINE)}
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    models = [path.name for path in cache.glob("models--*")] if cache.is_dir() else []
    return {**facts, "models": len(models), "free_gib": _gib(shutil.disk_usage(existing).free)}


def _gib(size: int) -> float:
    return round(size / GIB, 1)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
