"""Hardware and versions that a run was made with, for its ``run.json``."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch


def environment(device: torch.device, processes: int) -> dict[str, str | int | None]:
    """Versions, device and commit.

    Args:
        device: where training runs.
        processes: how many train together.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchdiffeq": metadata.version("torchdiffeq"),
        "snopt": _commit(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processes": processes,
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checkout's commit, with ``+`` where tracked files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
