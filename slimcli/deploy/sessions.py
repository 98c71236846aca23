"""Sessions of onnxruntime for measuring, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from slimcli.deploy.providers import PROVIDERS
from slimcli.errors import InputError, suggest


def open_session(path: Path, threads: int = 1, provider: str = "cpu", profile: Path | None = None) -> ort.InferenceSession:
    """A session that runs on this provider and no other, in so many threads; it writes a `profile` into files of that beginning.

    Raises `InputError` for a file that onnxruntime cannot run, and for a provider that it would silently replace by the CPU.
    """
    if provider not in PROVIDERS:
        raise InputError(f"there is no provider {provider!r}", suggest(provider, PROVIDERS))
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise InputError(f"this onnxruntime has no {wanted}", "install the onnxruntime build that has it (slimcli[gpu])")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:
        raise InputError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0][:200]}", "export it again") from error
    if session.get_providers()[0] != wanted:
        raise InputError(
            f"onnxruntime fell back from {wanted} to {session.get_providers()[0]}", "check the driver and its libraries"
        )
    return session


def feed(session: ort.InferenceSession, batch: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """An input for it, made up: `batch` images."""
    entry = session.get_inputs()[0]
    shape = [batch if index == 0 else side for index, side in enumerate(entry.shape)]
    if isinstance(entry.shape[0], int) and entry.shape[0] != batch:
        raise InputError(f"an ONNX file has a fixed batch of {entry.shape[0]}", f"use --batch {entry.shape[0]}")
    known = entry.type in ("tensor(float)", "tensor(uint8)")
    if not known or not all(isinstance(side, int) for side in shape) or len(session.get_inputs()) > 1:
        raise InputError(f"an ONNX input of {entry.type} {entry.shape} cannot be made up", "bench takes one input of images")
    if entry.type == "tensor(uint8)":
        return {entry.name: generator.integers(0, 256, shape, dtype=np.uint8)}
    return {entry.name: generator.standard_normal(shape, dtype=np.float32)}
