"""Every check of `slim doctor` can fail, and then names the way out."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torchvision

from slimcli import environment
from slimcli.deploy import onnx, providers
from slimcli.errors import ParityError
from slimcli.pipeline import doctor

Patch = pytest.MonkeyPatch


def look(what: str, data_root: Path | None = None) -> doctor.Finding:
    """One check alone."""
    root = None if data_root is None else str(data_root)
    return next(doctor.finding(*check) for check in doctor.checks(root) if check[0] == what)


def sound(what: str, *words: str, remark: str = "", data_root: Path | None = None) -> None:
    finding = look(what, data_root)
    assert finding["ok"], finding
    assert all(word in finding["found"] for word in words), finding
    assert remark in finding["way_out"]
    assert bool(remark) == bool(finding["way_out"])


def broken(what: str, *words: str, way_out: str, data_root: Path | None = None) -> None:
    finding = look(what, data_root)
    assert not finding["ok"], finding
    assert all(word in finding["found"] for word in words), finding
    assert way_out in finding["way_out"]


def raising(error: Exception) -> Any:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_this_environment_is_sound() -> None:
    findings = doctor.examine()
    assert [finding["what"] for finding in findings] == [check[0] for check in doctor.checks()]
    assert all(finding["ok"] for finding in findings), findings


def test_an_old_python(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    broken("Python", way_out="Python 3.11")


@pytest.mark.parametrize("name", doctor.PACKAGES)
def test_a_package_is_missing_or_of_another_version(monkeypatch: Patch, name: str) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: None)
    broken(name, "missing", way_out=f"pip install {name}")
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [f"{name}<3,>=2.1"])
    monkeypatch.setattr(doctor, "version", lambda _: "2.1.0")
    sound(name, "2.1.0")
    monkeypatch.setattr(doctor, "version", lambda _: "2.0")
    broken(name, "2.0", f"{name}<3,>=2.1", way_out=f"pip install '{name}<3,>=2.1'")


def test_onnxruntime_may_be_the_one_for_gpus(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "version", {"onnxruntime-gpu": "1.32.0"}.get)
    sound("onnxruntime", "1.32.0")


def test_torchvision_demands_another_torch(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "version", {"torch": "2.13.0+cpu", "torchvision": "0.29.1"}.get)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy", "torch (==2.14.1)", "scipy ; extra == 'scipy'"])
    broken("torch and torchvision", "0.29.1 needs torch==2.14.1", "2.13.0+cpu", way_out="pip install -U torch torchvision")
    monkeypatch.setattr(doctor, "version", {"torch": "2.14.1+cu130"}.get)
    sound("torch and torchvision", "fit each other")


def test_torchvisions_compiled_operators_do_not_load_or_do_not_compute(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torchvision.ops, "nms", raising(RuntimeError("operator torchvision::nms does not exist\nmore")))
    broken("torch and torchvision", "operator torchvision::nms does not exist)", way_out="pip install -U torch torchvision")
    monkeypatch.setattr(torchvision.ops, "nms", lambda *_: torch.tensor([0, 1, 2]))
    broken("torch and torchvision", "wrong results", way_out="pip install -U torch torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    broken("torch and torchvision", "do not fit", way_out="pip install -U torch torchvision")


def test_the_exporters_chain_is_broken(monkeypatch: Patch) -> None:
    upgrade = "pip install -U torch onnx onnxscript onnxruntime"
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", raising(ImportError("cannot import name 'ir' from 'onnx_ir'")))
        broken("export to ONNX", "cannot import name 'ir'", way_out=upgrade)
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "_checked", raising(ParityError("the exported file differs from torch by 0.5")))
        broken("export to ONNX", "differs from torch by 0.5", way_out=upgrade)
    monkeypatch.setitem(sys.modules, "slimcli.deploy.onnx", None)
    broken("export to ONNX", "slimcli.deploy.onnx", way_out=upgrade)


def test_two_builds_of_onnxruntime_or_none_that_works(monkeypatch: Patch) -> None:
    monkeypatch.setattr(providers, "available", lambda: {"cpu": "x, not in this build", "cuda": "x, there"})
    broken("onnxruntime providers", "cpu is missing", "cuda", way_out="pip install -U onnxruntime")
    monkeypatch.setattr(providers, "available", raising(ImportError("libonnxruntime.so: no such file")))
    broken("onnxruntime providers", "libonnxruntime.so", way_out="pip install -U onnxruntime")
    monkeypatch.setattr(doctor, "version", lambda _: "1.32.0")
    broken("onnxruntime providers", "both installed", way_out="pip uninstall")


@pytest.mark.parametrize("what", ["torch and torchvision", "export to ONNX", "devices", "threads", "distributed"])
def test_a_torch_that_cannot_be_imported(monkeypatch: Patch, what: str) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "slimcli.deploy.onnx")
    broken(what, "torch", way_out="pip install -U torch")


def test_the_processor_is_told_with_what_makes_it_fast(monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment, "_text", lambda _: "model name\t: A CPU\nflags\t\t: avx2 avx512f avx512_bf16 amx_tile\n")
    sound("devices", "A CPU, ", "AVX2, AVX-512, bf16, AMX")
    monkeypatch.setattr(environment, "_text", lambda _: "")
    sound("devices", " cores")


def with_gpus(patch: Patch, conv: Any) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 2)
    patch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    patch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(total_memory=80 * 2**30))
    patch.setattr(torch, "ones", lambda *_, **__: None)
    patch.setattr(torch.nn.functional, "conv2d", conv)


def test_gpus_are_told_if_they_compute(monkeypatch: Patch) -> None:
    with_gpus(monkeypatch, lambda *_: 9.0)
    sound("devices", "GPU 0, 80 GiB; GPU 1, 80 GiB; ")
    with_gpus(monkeypatch, raising(RuntimeError("CUDA error: no kernel image is available\nmore")))
    broken("devices", "GPU 0 cannot compute (CUDA error: no kernel image is available)", way_out="torch build for this GPU")
    with_gpus(monkeypatch, lambda *_: 8.0)
    broken("devices", "computes 9 as 8", way_out="--device cpu")


def test_a_gpu_that_torch_does_not_see(monkeypatch: Patch, tmp_path: Path) -> None:
    driver = tmp_path / "nvidiactl"
    monkeypatch.setattr(doctor, "_DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sound("devices")  # no driver: a machine without a GPU
    driver.touch()
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError("The NVIDIA driver on your system is too old")))
    broken("devices", "CUDA 13.0", "driver on your system is too old", way_out="update the driver")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    broken("devices", "no device is found", way_out="update the driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sound("devices", remark="CUDA_VISIBLE_DEVICES= hides the GPU")
    monkeypatch.setattr(torch.version, "cuda", None)
    sound("devices", remark="built without CUDA")


def test_threads_against_cores(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(doctor, "cores", lambda: 2)
    broken("threads", "4 threads on 2 cores", way_out="export OMP_NUM_THREADS=2")
    monkeypatch.setattr(doctor, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    sound("threads", "4 of 8 cores", remark="OMP_NUM_THREADS=4")
    monkeypatch.delenv("OMP_NUM_THREADS")
    sound("threads", "4 of 8 cores")


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 64), ("250000 100000", 2), ("10000 100000", 1), ("", 64)])
def test_a_container_may_have_fewer_cores(monkeypatch: Patch, quota: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(environment, "_text", lambda path: f"{quota}\n" if path.endswith("cpu.max") else "")
    assert environment.cores() == expected


def test_backends_for_several_processes(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    broken("distributed", "no nccl", way_out="nccl")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    sound("distributed", "gloo")
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    broken("distributed", "no gloo", way_out="another build of torch")
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    broken("distributed", "no gloo", way_out="another build of torch")


def test_a_compiler_is_only_remarked_on(monkeypatch: Patch, tmp_path: Path) -> None:
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho '<stdin>:1:10: fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    sound("C++ compiler", str(fake), "Python.h: No such file", remark="--compile")
    fake.write_text("#!/bin/sh\nexit 0\n")
    sound("C++ compiler", str(fake))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    sound("C++ compiler", "none", remark="install g++")


def lay_out(root: Path, name: str) -> list[Path]:
    folder, files = doctor._FILES[name]
    (root / folder).mkdir(parents=True)
    for file in files:
        (root / folder / file).write_bytes(b"x")
    return [root / folder / file for file in files]


@pytest.mark.parametrize("name", doctor._FILES)
def test_a_data_set_is_there_half_there_or_not(tmp_path: Path, name: str) -> None:
    sound("data root", "no whole data set", data_root=tmp_path)
    files = lay_out(tmp_path, name)
    sound("data root", f"has {name}", data_root=tmp_path)
    files[0].write_bytes(b"")
    files[1].unlink()
    missing = f"{name} is half there (it lacks {files[0].name}, {files[1].name})"
    broken("data root", missing, way_out="fetch or unpack", data_root=tmp_path)


def test_cifar10_may_be_one_archive(tmp_path: Path) -> None:
    path = tmp_path / "cifar10.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"x" * 1000)
    sound("data root", "has cifar10", data_root=tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    broken("data root", "cifar10 is half there", way_out="fetch", data_root=tmp_path)


def test_a_data_root_that_was_named_must_exist(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLIM_DATA", raising=False)
    sound("data root", "digits are built in", remark="SLIM_DATA")
    broken("data root", "does not exist", way_out="--data-root", data_root=tmp_path / "nowhere")
    monkeypatch.setenv("SLIM_DATA", str(tmp_path / "nowhere"))
    broken("data root", "does not exist", way_out="SLIM_DATA")


def test_a_disk_that_is_full_or_closed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    broken("disk", "cannot be written", way_out="-o")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=300_000_000))
    broken("disk", "0.3 GB free", way_out="make room")


def test_memory_of_the_machine_and_of_a_container(monkeypatch: Patch) -> None:
    limits = {"memory.max": "3000000000", "memory.current": "2600000000"}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=10**12))
    monkeypatch.setattr(environment, "_text", lambda path: limits.get(Path(path).name, ""))
    broken("memory", "0.4 GB free", way_out="container")
    limits["memory.max"] = "max"
    sound("memory", "1,000.0 GB free")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=10**8))
    broken("memory", "0.1 GB free", way_out="end other programs")
