"""`slim doctor`: is everything here that the other commands need?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from slimcli.deploy import providers
from slimcli.environment import environment, version

Finding = dict[str, Any]
_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw", "cifar10": "cifar10.npz", "cifar100": "cifar-100-python"}


def examine(data_root: str | None = None) -> list[Finding]:
    """One finding each: `what`, `ok`, `found`, `way_out`. Missing data sets are no fault: digits are inside the package."""
    return [_python(), *_packages(), _torch_pair(), _devices(), _providers(), *_data(data_root)]


def _finding(what: str, ok: bool, found: str, way_out: str = "") -> Finding:
    return {"what": what, "ok": ok, "found": found, "way_out": "" if ok and not way_out.startswith("(") else way_out}


def _python() -> Finding:
    return _finding("Python", sys.version_info >= (3, 11), environment()["python"], "install Python 3.11 or newer")


def _packages() -> list[Finding]:
    needed = ("torch", "torchvision", "torch-pruning", "onnx", "onnxscript", "onnxruntime")
    found = {name: version(name) or (version("onnxruntime-gpu") if name == "onnxruntime" else None) for name in needed}
    return [_finding(name, at is not None, at or "missing", f"pip install {name}") for name, at in found.items()]


def _torch_pair() -> Finding:
    try:
        import torchvision.ops

        torchvision.ops.nms  # noqa: B018 - a mismatched pair fails when its compiled operators are looked up
    except (ImportError, RuntimeError, AttributeError) as error:
        return _finding("torch and torchvision", False, f"do not fit each other ({error})", "pip install -U torch torchvision")
    return _finding("torch and torchvision", True, "fit each other")


def _devices() -> Finding:
    try:
        import torch
    except ImportError as error:
        return _finding("devices", False, f"torch cannot be imported ({error})", "pip install -U torch torchvision")
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    cpu = f"CPU with {environment()['cores']} cores, {torch.get_num_threads()} threads"
    return _finding("devices", True, ", ".join([*cuda, cpu]))


def _providers() -> Finding:
    if version("onnxruntime") and version("onnxruntime-gpu"):
        return _finding(
            "onnxruntime providers",
            False,
            "onnxruntime and onnxruntime-gpu are both installed, in the same folder",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu",
        )
    try:
        there = [name for name, text in providers.available().items() if text.endswith(", there")]
    except ImportError as error:
        return _finding("onnxruntime providers", False, f"cannot be imported ({error})", "pip install -U onnxruntime")
    return _finding("onnxruntime providers", "cpu" in there, ", ".join(there), "pip install -U onnxruntime")


def _data(data_root: str | None) -> list[Finding]:
    root = Path(data_root or os.environ.get("SLIM_DATA") or "data")
    if not root.is_dir() and data_root is not None:
        return [_finding("data root", False, f"{root} does not exist", "check --data-root")]
    if not root.is_dir():
        return [
            _finding(
                "data root",
                True,
                f"{root} does not exist; digits are built in",
                "(other data: --data-root, or the variable SLIM_DATA)",
            )
        ]
    found = [name for name, path in _FOLDERS.items() if (root / path).exists()]
    if "cifar10" not in found and (root / "cifar-10-batches-py").exists():
        found.append("cifar10")
    return [_finding("data root", True, f"{root} has {', '.join(found) or 'no data set known by name'}")]
