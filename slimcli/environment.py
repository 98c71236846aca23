"""Where a figure was measured: machine and versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from slimcli.records import JsonDict

PACKAGES = ("slimcli", "torch", "torchvision", "torch-pruning", "onnx", "onnxruntime", "numpy")


def environment() -> JsonDict:
    """Machine, processor, cores, and the versions of what computes; nothing heavy is imported."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """The installed version, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
