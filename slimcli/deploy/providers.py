"""onnxruntime's execution providers by the names that `--provider` takes."""

from __future__ import annotations

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


def available() -> dict[str, str]:
    """For each provider: onnxruntime's name of it, and whether the installed build has it."""
    import onnxruntime as ort

    built_in = set(ort.get_available_providers())
    return {name: f"{full}, {'there' if full in built_in else 'not in this build'}" for name, full in PROVIDERS.items()}
