"""Where a figure was measured: machine and versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

from slimcli.records import JsonDict

PACKAGES = (
    "slimcli",
    "torch",
    "torchvision",
    "torch-pruning",
    "lightning-fabric",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)
_INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_tile"},
}
"""What makes a network fast on a CPU, and the flags under which /proc/cpuinfo lists it."""


def environment() -> JsonDict:
    """Machine, processor, cores, and the versions of what computes; nothing heavy is imported."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def conditions() -> JsonDict:
    """What else decides how fast a call is, as far as the system tells: the cores allowed, the governor, the load."""
    return {
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def version(package: str) -> str | None:
    """The installed version, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def instructions() -> list[str]:
    """Which of the instructions that matter here the processor has; empty where the system does not list them."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name, names in _INSTRUCTIONS.items() if names & flags]


def cores() -> int:
    """How many cores this process may keep busy: those it may run on, or fewer where a container limits its time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _control_group("cpu.max").partition(" ")
    return min(allowed, max(1, round(int(quota) / int(period)))) if quota.isdigit() and period.isdigit() else allowed


def free_memory() -> int:
    """Bytes of memory that are free here: the machine's, or fewer where a container limits them."""
    limit, used = _control_group("memory.max"), _control_group("memory.current")
    free = psutil.virtual_memory().available
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def _cpuinfo(field: str) -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _control_group(name: str) -> str:
    return _text(f"/sys/fs/cgroup/{name}").strip()


def _text(path: str) -> str:
    """The file's content, empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
