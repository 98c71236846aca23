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
    "gradient_flow": "slimcli.pruning.flow",
    "information_flow": "slimcli.pruning.flow",
    "load": "slimcli.networks.loading",
    "pq_index": "slimcli.pruning.sparsity",
    "prune": "slimcli.api",
}

if TYPE_CHECKING:
    from slimcli.api import prune as prune
    from slimcli.deploy.bench import bench as bench
    from slimcli.deploy.onnx import export_onnx as export_onnx
    from slimcli.networks.cost import count as count
    from slimcli.networks.loading import load as load
    from slimcli.pruning.flow import gradient_flow as gradient_flow
    from slimcli.pruning.flow import information_flow as information_flow
    from slimcli.pruning.history import NormHistory as NormHistory
    from slimcli.pruning.sparsity import pq_index as pq_index

__all__ = [
    "NormHistory",
    "__version__",
    "bench",
    "count",
    "export_onnx",
    "gradient_flow",
    "information_flow",
    "load",
    "pq_index",
    "prune",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'slimcli' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
