"""Export to torch's own format (`torch.export`), with proof: the file computes what the network computes."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimcli.deploy.onnx import Export, check_named, first_reason, largest_error, metadata_of, outputs_of
from slimcli.disk import write_atomically
from slimcli.errors import ParityError

METADATA = "slimcli.json"


def export_pt2(
    model: nn.Module, path: Path, images: Tensor, metadata: Mapping[str, Any] | None = None, tolerance: float = 1e-4
) -> Export:
    """Write the model as one exported program with a dynamic batch, its metadata in the extra file `slimcli.json`, and check it.

    Raises `ParityError` as `export_onnx` does, and leaves no file then (an older one stays).
    """
    network = copy.deepcopy(model).cpu().eval()
    images = images.detach().cpu()
    facts = {METADATA: json.dumps(metadata_of(network, images, metadata or {}))}
    try:
        two = images.new_zeros(2, *images.shape[1:])  # goes into the file: no place for the user's images
        program = torch.export.export(network, (two,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:
        raise ParityError(f"the network cannot be exported ({first_reason(error)})", "--debug shows where") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of the user's source, and where it lies
    buffer = io.BytesIO()  # it wants to go back in what it writes
    torch.export.save(program, buffer, extra_files=facts)
    errors: list[float] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue(), lambda temporary: errors.append(_error(network, temporary, images, tolerance)))
    return Export(path, path.stat().st_size, errors[0], len(images), None, tuple(images.shape[1:]))


@check_named()
def _error(network: nn.Module, path: Path, images: Tensor, tolerance: float) -> float:
    """The largest error of the file's outputs."""
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()

    def run(batch: Tensor, names: Sequence[str]) -> list[np.ndarray]:
        return [output.numpy() for output in outputs_of(loaded, batch).values()]

    return largest_error(network, run, images, tolerance)
