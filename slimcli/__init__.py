"""slimcli: physically smaller convolutional networks, ready to deploy.

The names below are the public interface; they are imported on first use, so that `import slimcli` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "NormHistory": "slimcli.pruning.history",
    "bench": "slimcli.deploy.bench",
    "count": "slimcli.networks.cost",
    "export_onnx": "slimcli.deploy.onnx",
    "load": "slimcli.api",
    "prune": "slimcli.api",
}

if TYPE_CHECKING:
    from slimcli.api import load as load
    from slimcli.api import prune as prune
    from slimcli.deploy.bench import bench as bench
    from slimcli.deploy.onnx import export_onnx as export_onnx
    from slimcli.networks.cost import count as count
    from slimcli.pruning.history import NormHistory as NormHistory

__all__ = ["NormHistory", "__version__", "bench", "count", "export_onnx", "load", "prune"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'slimcli' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
