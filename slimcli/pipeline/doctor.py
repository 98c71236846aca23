"""`slim doctor`: is everything here that the other commands need, and does it work together?

Each check returns what it found and a remark (empty, or in brackets what not everyone needs), or raises `_FaultError`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slimcli.deploy import providers
from slimcli.environment import cores, environment, free_memory, instructions, version

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Finding = dict[str, Any]
Check = Callable[[], tuple[str, str]]

PACKAGES = ("torch", "torchvision", "torch-pruning", "lightning-fabric", "onnx", "onnxscript", "onnxruntime")
LEAST_DISK = LEAST_MEMORY = 10**9  # bytes: a run folder with its states and exports; torch with a small network
_DRIVER = Path("/dev/nvidiactl")
_MNIST = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_FILES = {
    "mnist": ("MNIST/raw", _MNIST),
    "fashion-mnist": ("FashionMNIST/raw", _MNIST),
    "cifar10": ("cifar-10-batches-py", (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")),
    "cifar100": ("cifar-100-python", ("train", "test", "meta")),
}
"""Where torchvision keeps each data set below the root, and the files that it wants there."""


class _FaultError(Exception):
    """What a check found to be broken, and the way out."""

    def __init__(self, found: str, way_out: str) -> None:
        super().__init__(found)
        self.found, self.way_out = found, way_out


def examine(data_root: str | None = None) -> list[Finding]:
    """One finding each: `what`, `ok`, `found`, `way_out` (of a sound one a remark at most).

    Missing data sets are no fault: digits are inside the package.
    """
    return [finding(*check) for check in checks(data_root)]


def checks(data_root: str | None = None) -> list[tuple[str, Check, str]]:
    """Everything that is looked at: its name, the check, and the way out where the check cannot even be carried out."""
    pair, exporter = "pip install -U torch torchvision", "pip install -U torch onnx onnxscript onnxruntime"
    return [
        ("Python", _python, ""),
        *((name, partial(_package, name), f"pip install -U {name}") for name in PACKAGES),
        ("torch and torchvision", _torch_pair, pair),
        ("export to ONNX", _export, exporter),
        ("onnxruntime providers", _providers, "pip install -U onnxruntime"),
        ("devices", _devices, pair),
        ("threads", _threads, pair),
        ("distributed", _distributed, pair),
        ("C++ compiler", _compiler, "set CXX to a compiler that works"),
        ("data root", partial(_data, data_root), "name another folder with --data-root"),
        ("disk", _disk, "go to a folder that exists"),
        ("memory", _memory, "pip install -U psutil"),
    ]


def finding(what: str, check: Check, way_out: str) -> Finding:
    """What the check found; one that cannot be carried out at all has found a fault, with `way_out`."""
    try:
        found, remark = check()
    except _FaultError as fault:
        return {"what": what, "ok": False, "found": fault.found, "way_out": fault.way_out}
    except Exception as error:
        return {"what": what, "ok": False, "found": f"failed ({_first_line(error)})", "way_out": way_out}
    return {"what": what, "ok": True, "found": found, "way_out": remark}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _python() -> tuple[str, str]:
    sound = sys.version_info >= (3, 11)
    if not sound:
        raise _FaultError(platform.python_version(), "install Python 3.11 or newer")
    return platform.python_version(), ""


def _package(name: str) -> tuple[str, str]:
    found = version(name) or (version("onnxruntime-gpu") if name == "onnxruntime" else None)
    if found is None:
        raise _FaultError("missing", f"pip install {name}")
    wanted = _requirement("slimcli", name)
    if wanted is not None and not wanted.specifier.contains(found, prereleases=True):
        raise _FaultError(f"{found}, but slimcli needs {wanted}", f"pip install '{wanted}'")
    return found, ""


def _requirement(package: str, on: str) -> Requirement | None:
    """What an installed package demands of another; None where it demands nothing."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return None
    demands = [demand for demand in map(Requirement, lines) if demand.marker is None or demand.marker.evaluate()]
    return next((demand for demand in demands if demand.name == on), None)


def _torch_pair() -> tuple[str, str]:
    """torchvision's own demand on torch, and one of its compiled operators at work."""
    way_out = "pip install -U torch torchvision"
    wanted, found = _requirement("torchvision", "torch"), version("torch") or "missing"
    if wanted is not None and not wanted.specifier.contains(found, prereleases=True):
        raise _FaultError(f"torchvision {version('torchvision')} needs {wanted}, not {found}", way_out)
    try:
        import torch
        from torchvision import ops

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]])
        kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except Exception as error:
        raise _FaultError(f"do not fit each other ({_first_line(error)})", way_out) from error
    if kept != [0, 2]:
        raise _FaultError("do not fit each other (a compiled operator gives wrong results)", way_out)
    return "fit each other", ""


def _export() -> tuple[str, str]:
    """A small network through the whole chain: torch, onnxscript, onnx, onnxruntime, and the comparison of outputs."""
    import torch
    from torch import nn

    from slimcli.deploy.onnx import export_onnx

    images = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with TemporaryDirectory() as folder:
        export = export_onnx(network, Path(folder) / "small.onnx", images)
    return f"a small network gives the same outputs in onnxruntime (within {export.max_error:.0e})", ""


def _providers() -> tuple[str, str]:
    if version("onnxruntime") and version("onnxruntime-gpu"):
        raise _FaultError(
            "onnxruntime and onnxruntime-gpu are both installed, in the same folder",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu",
        )
    there = [name for name, text in providers.available().items() if text.endswith(", there")]
    if "cpu" not in there:
        raise _FaultError(f"cpu is missing (there: {', '.join(there) or 'none'})", "pip install -U onnxruntime")
    return ", ".join(there), ""


def _devices() -> tuple[str, str]:
    import torch

    having = f" with {', '.join(found)}" if (found := instructions()) else ""
    cpu = f"{environment()['processor']}, {cores()} cores{having}"
    if torch.cuda.is_available():
        return "; ".join([*map(_cuda_device, range(torch.cuda.device_count())), cpu]), ""
    if not _DRIVER.exists():
        return cpu, ""
    if torch.version.cuda is None:
        return cpu, "(there is an NVIDIA driver, and this torch is built without CUDA: install a build with it to use the GPU)"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return cpu, f"(CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides the GPU)"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        reason = _first_line(error)
    else:
        reason = "no device is found"
    raise _FaultError(
        f"{cpu}; torch's CUDA {torch.version.cuda} does not get on with the NVIDIA driver ({reason})",
        "update the driver, or install the torch build for the driver's CUDA (nvidia-smi names it)",
    )


def _cuda_device(index: int) -> str:
    import torch

    name, device = torch.cuda.get_device_name(index), f"cuda:{index}"
    try:
        ones = torch.ones(1, 1, 3, 3, device=device)
        result = float(torch.nn.functional.conv2d(ones, ones))
    except RuntimeError as error:
        raise _FaultError(
            f"{name} cannot compute ({_first_line(error)})", "install a torch build for this GPU, or use --device cpu"
        ) from error
    if result != 9:
        raise _FaultError(f"{name} computes 9 as {result:g}", "use another GPU, or --device cpu")
    return f"{name}, {torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB"


def _threads() -> tuple[str, str]:
    import torch

    threads, limit = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    if threads > cores():
        raise _FaultError(f"torch computes with {threads} threads on {cores()} cores", f"export OMP_NUM_THREADS={cores()}")
    remark = f"(OMP_NUM_THREADS={limit} limits it; unset it to use all cores)" if limit and threads < cores() else ""
    return f"torch computes with {threads} of {cores()} cores", remark


def _distributed() -> tuple[str, str]:
    import torch
    from torch import distributed

    gloo, nccl = (
        distributed.is_available() and there() for there in (distributed.is_gloo_available, distributed.is_nccl_available)
    )
    if not gloo:
        raise _FaultError("this torch has no gloo: several processes cannot train together", "install another build of torch")
    if not nccl and torch.cuda.device_count() > 1:
        raise _FaultError(
            "this torch has no nccl: several GPUs cannot train together", "install a torch build with CUDA and nccl"
        )
    return "gloo, nccl" if nccl else "gloo", ""


def _compiler() -> tuple[str, str]:
    """A C++ compiler that finds the headers which torch's compiler includes."""
    wanted = (os.environ.get("CXX"), "g++", "clang++", "c++")
    compiler = next((path for name in wanted if name and (path := shutil.which(name))), None)
    if compiler is None:
        return "none", "(only --compile needs one: install g++ or clang++)"
    source = "#include <Python.h>\n#include <omp.h>\n#include <cmath>\n"
    flags = ["-x", "c++", "-std=c++17", "-fopenmp", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
    done = subprocess.run([compiler, *flags], input=source, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        why = next((line.partition("error: ")[2] for line in done.stderr.splitlines() if "error: " in line), "it fails")
        return f"{compiler} cannot compile for torch ({why})", "(only --compile needs it: install python3-dev and libomp)"
    return compiler, ""


def _data(data_root: str | None) -> tuple[str, str]:
    chosen = data_root or os.environ.get("SLIM_DATA")
    root = Path(chosen or "data")
    if not root.is_dir():
        if chosen:
            raise _FaultError(f"{root} does not exist", "check --data-root, or the variable SLIM_DATA")
        return f"{root} does not exist; digits are built in", "(other data: --data-root, or the variable SLIM_DATA)"
    missing = {name: _missing(root / folder, files) for name, (folder, files) in _FILES.items()}
    if (archive := root / "cifar10.npz").exists():
        missing["cifar10"] = [] if zipfile.is_zipfile(archive) else ["the end of cifar10.npz"]
    found = [name for name, lacking in missing.items() if lacking == []]
    half = [f"{name} is half there (it lacks {', '.join(lacking)})" for name, lacking in missing.items() if lacking]
    text = "; ".join([f"{root} has {', '.join(found) or 'no whole data set known by name'}", *half])
    if half:
        raise _FaultError(text, "fetch or unpack what is missing, or remove the rest")
    return text, ""


def _missing(folder: Path, files: tuple[str, ...]) -> list[str] | None:
    """The files that are not there or empty; None where there is nothing of the data set."""
    if not folder.is_dir():
        return None
    return [name for name in files if not ((folder / name).is_file() and (folder / name).stat().st_size)]


def _disk() -> tuple[str, str]:
    free = shutil.disk_usage(".").free
    found = f"{free / 1e9:,.1f} GB free in this folder"
    if free < LEAST_DISK:
        raise _FaultError(found, "make room, or name a folder on another disk with -o")
    if not os.access(".", os.W_OK):
        raise _FaultError(f"{found}, but it cannot be written", "name another folder with -o")
    return found, ""


def _memory() -> tuple[str, str]:
    found = f"{free_memory() / 1e9:,.1f} GB free"
    if free_memory() < LEAST_MEMORY:
        raise _FaultError(found, "end other programs, or give the container more memory")
    return found, ""
