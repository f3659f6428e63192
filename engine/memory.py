"""How much memory a run has taken."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

_STATUS: Final = Path("/proc/self/status")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory taken so far, in bytes.

    Of the device since the run began on CUDA; elsewhere of the process since it began, and 0
    where the system does not tell (only Linux does).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not _STATUS.is_file():
        return 0
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
