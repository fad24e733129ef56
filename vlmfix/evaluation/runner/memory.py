"""Memory: its peak, and giving it back."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")
# Limit and use of a container, where there are any.
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
_CLEAR = Path("/proc/self/clear_refs")


def free_memory() -> None:
    """Give back what is not in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_memory(device: torch.device) -> int:
    """Bytes that nobody uses: of a GPU, or else of the machine and the container of this process; 0 where the
    system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = _MACHINE.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
    with suppress(OSError, ValueError):  # there is no container, or it has no limit
        limit, used = (int(path.read_text(encoding="ascii")) for path in _CONTAINER)
        free = min(free, max(0, limit - used))
    return free


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak: of the device, or of the process on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
