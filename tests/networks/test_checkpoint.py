"""Loading equals saving; and a file, whatever is in it, is a checkpoint or a `CheckpointError`, and is never run."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimcli.errors import ArchError, CheckpointError, InputError
from slimcli.networks import checkpoint, resolve
from slimcli.networks.checkpoint import Checkpoint
from slimcli.pruning import surgery
from slimcli.pruning.verification import verify
from tests import tiny

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before zip files (torch.serialization)
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
LENET = ("lenet5", 10, (1, 28, 28))


@pytest.fixture
def net(tmp_path: Path) -> str:
    """The arch of a tiny network in a file of the user's."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))\n"
    )
    return f"{tmp_path / 'net.py'}:build"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a payload makes when it is run."""
    return tmp_path / "ran"


def of(model: nn.Module, arch: str, classes: int = 4, shape: tuple[int, int, int] = tiny.SHAPE, **more: Any) -> Checkpoint:
    return Checkpoint(model.state_dict(), arch, classes, shape, **more)


@torch.no_grad()
def outputs(model: nn.Module, shape: tuple[int, ...] = tiny.SHAPE) -> Tensor:
    return tiny.together(model.eval()(torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))))


def settled(model: nn.Module, shape: tuple[int, ...] = tiny.SHAPE) -> nn.Module:
    """The model after a few batches, so that its batch-norm statistics are its own."""
    model.train()
    for _ in range(2):
        model(torch.randn(8, *shape))
    return model.eval()


# Loading equals saving.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("network", tiny.ALL, ids=lambda network: network.__name__)
def test_a_slim_network_comes_back_bit_by_bit(tmp_path: Path, network: type[nn.Module], seed: int) -> None:
    model = settled(network())
    groups = verify(model, tiny.SHAPE, surgery.find_groups(model, tiny.SHAPE, linear=True))
    generator = torch.Generator().manual_seed(seed)
    removal = {}
    for group in groups:
        if group.prunable:
            gone = int(torch.randint(1, group.channels, (), generator=generator)) if seed else group.channels - 1
            removal[group.name] = torch.randperm(group.channels, generator=generator)[:gone].tolist()
    surgery.remove(model, tiny.SHAPE, removal)
    path, arch = tmp_path / "slim.pt", f"tests.tiny:{network.__name__}"
    checkpoint.save(path, of(model, arch))
    again = checkpoint.load(path, arch).build()
    assert not again.training
    assert torch.equal(outputs(again), outputs(model))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert [repr(module) for module in again.modules()] == [repr(module) for module in model.modules()]


def test_keys_that_do_not_fit_are_all_named_and_the_nearest_ones_suggested(tmp_path: Path) -> None:
    state = tiny.Chain().state_dict()
    state["convv2.bias"] = state.pop("conv2.bias")
    state["fc1.weight"] = torch.zeros(2, 3)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"missing: conv2.bias \(is it convv2.bias\?\); surplus: convv2.bias; .*fc1.weight"):
        checkpoint.load(tmp_path / "odd.pt", "tests.tiny:Chain", input_shape=tiny.SHAPE).build()


def test_a_shape_that_was_given_is_not_changed(tmp_path: Path) -> None:
    torch.save(tiny.Chain().state_dict(), tmp_path / "chain.pt")
    assert checkpoint.load(tmp_path / "chain.pt", "tests.tiny:Chain", input_shape=(1, 8, 8)).input_shape == (1, 8, 8)
    assert checkpoint.load(tmp_path / "chain.pt", "tests.tiny:Chain").input_shape[0] == 3


def test_a_slim_network_loads_where_torch_pruning_is_missing(tmp_path: Path) -> None:
    """Bit by bit the same, in a fresh process."""
    shape = (3, 32, 32)
    model = settled(resolve.build("resnet20-cifar", 10, shape), shape)
    surgery.remove(model, shape, {"conv1": [3], "layer2.0.conv2": [0, 20], "layer3.1.conv1": [5]})
    checkpoint.save(tmp_path / "slim.pt", of(model, "resnet20-cifar", 10, shape))
    inputs = torch.randn(2, *shape)
    with torch.no_grad():
        torch.save((inputs, model(inputs)), tmp_path / "expected.pt")
    code = f"""
import sys, torch
torch.set_num_threads({torch.get_num_threads()})
sys.modules["torch_pruning"] = None  # an import of it fails
import slimcli
inputs, expected = torch.load("expected.pt")
with torch.no_grad():
    sys.exit(0 if torch.equal(slimcli.load("slim.pt")(inputs), expected) else "other outputs")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize(
    ("arch", "shape", "removal"),
    [
        ("lenet5", (1, 28, 28), {"conv1": [*range(17)], "conv2": [0, 49], "fc1": [1, 2, 3]}),
        ("resnet20-cifar", (3, 16, 16), {"conv1": [3], "layer2.0.conv2": [0, 20], "layer3.1.conv1": [5]}),
    ],
)
def test_a_built_in_network_needs_no_arch(
    tmp_path: Path, arch: str, shape: tuple[int, int, int], removal: dict[str, list[int]]
) -> None:
    model = settled(resolve.build(arch, 10, shape), shape)
    surgery.remove(model, shape, removal)
    checkpoint.save(tmp_path / "slim.pt", of(model, arch, 10, shape))
    again = checkpoint.load(tmp_path / "slim.pt")
    assert torch.equal(outputs(again.build(), shape), outputs(model, shape))
    assert torch.equal(outputs(again.build(), shape), outputs(again.build(), shape))
    checkpoint.save(tmp_path / "copy.pt", again)
    assert torch.equal(outputs(checkpoint.load(tmp_path / "copy.pt").build(), shape), outputs(model, shape))


def test_a_network_slimmed_twice_comes_back(tmp_path: Path) -> None:
    model = settled(tiny.OptionA())
    for removal in ({"conv1": [0, 1]}, {"conv1": [3], "layer2.0.conv2": [9]}):
        surgery.remove(model, tiny.SHAPE, removal)
        checkpoint.save(tmp_path / "slim.pt", of(model, "tests.tiny:OptionA"))
        model = checkpoint.load(tmp_path / "slim.pt", "tests.tiny:OptionA").build()
    assert model.conv1.out_channels == 13
    groups = verify(model, tiny.SHAPE, surgery.find_groups(model, tiny.SHAPE))
    assert {g.name for g in groups if not g.prunable} == {"linear"}


def test_what_is_known_beside_the_weights_comes_back(tmp_path: Path) -> None:
    model = resolve.build(*LENET)
    saved = of(
        model,
        *LENET,
        mean=(0.1307,),
        std=(0.3081,),
        data={"name": "digits", "holdout": 0.1},
        removed={"conv1": [1, 2]},
        history={"norm": "l1", "layers": {"conv1": torch.rand(3, 20)}},
        metrics={"top1": 99.1},
    )
    checkpoint.save(tmp_path / "model.pt", saved)
    loaded = checkpoint.load(tmp_path / "model.pt")
    for field in ("arch", "classes", "input_shape", "mean", "std", "data", "removed", "metrics"):
        assert getattr(loaded, field) == getattr(saved, field), field
    assert loaded.history is not None
    assert torch.equal(loaded.history["layers"]["conv1"], saved.history["layers"]["conv1"])
    assert not loaded.foreign


def test_the_file_is_plain(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model.pt", of(resolve.build(*LENET), *LENET, metrics={"top1": 1.0}))
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["state_dict"].keys() == resolve.build(*LENET).state_dict().keys()
    assert content["arch"] == "lenet5"


def test_the_network_shares_no_memory_with_what_was_saved(tmp_path: Path) -> None:
    model = resolve.build(*LENET)
    saved = of(model, *LENET)
    first = saved.build()
    with torch.no_grad():
        first.conv1.weight.zero_()
    assert model.conv1.weight.abs().sum() > 0


def test_a_part_of_a_larger_storage_is_saved_without_the_rest(tmp_path: Path) -> None:
    network = resolve.build(*LENET)
    state = network.state_dict()
    flat = torch.cat([torch.full((10_000_000,), 7.0), *(value.flatten() for value in state.values())])
    place = 10_000_000
    for key, value in state.items():
        state[key] = flat[place : place + value.numel()].view(value.shape)
        place += value.numel()
    checkpoint.save(tmp_path / "model.pt", Checkpoint(state, *LENET))
    assert (tmp_path / "model.pt").stat().st_size < 4 * (len(flat) - 10_000_000) + 20_000
    loaded = checkpoint.load(tmp_path / "model.pt").state_dict
    assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())


def test_an_interrupted_save_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(path, of(resolve.build(*LENET), *LENET))
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save(path, of(resolve.build(*LENET), *LENET, metrics={"unpicklable": lambda: None}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_names_of_the_users_own_network_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "wrapped.py").write_text(
        "from torch import nn\n"
        "class Wrapped(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))\n"
        "    def forward(self, x):\n"
        "        return self.module(x)\n"
    )
    arch = f"{tmp_path / 'wrapped.py'}:Wrapped"
    model = resolve.build(arch, 5, tiny.SHAPE)
    checkpoint.save(tmp_path / "model.pt", of(model, arch, 5))
    assert torch.equal(outputs(checkpoint.load(tmp_path / "model.pt", arch).build()), outputs(model))


def test_a_network_has_one_precision_whatever_its_file_has(tmp_path: Path) -> None:
    model = tiny.Chain()
    surgery.remove(model, tiny.SHAPE, {"conv1": [0, 1]})
    checkpoint.save(tmp_path / "half.pt", of(model.half(), "tests.tiny:Chain"))
    again = checkpoint.load(tmp_path / "half.pt", "tests.tiny:Chain").build()
    assert {tensor.dtype for tensor in again.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert outputs(again).isfinite().all()


# Foreign state dicts.

WRAPPINGS: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "net": lambda state: {"net": state, "acc": 93.0},
    "part of another module": lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    "a training checkpoint": lambda state: {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "two deep": lambda state: {"model": {"state_dict": state}},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "_orig_mod.": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "module._orig_mod.": lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    "_orig_mod.module.": lambda state: {"state_dict": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
    "half": lambda state: {key: value.half() for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_load_in_every_common_wrapping(tmp_path: Path, wrapping: str, legacy: bool) -> None:
    model = resolve.build(*LENET)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # so that the half-precision wrapping loses nothing
    torch.save(WRAPPINGS[wrapping](model.state_dict()), tmp_path / "foreign.pt", _use_new_zipfile_serialization=not legacy)
    loaded = checkpoint.load(tmp_path / "foreign.pt", "lenet5")
    assert loaded.foreign
    assert (loaded.classes, loaded.input_shape) == (10, (1, 28, 28))
    assert torch.equal(outputs(loaded.build(), (1, 28, 28)), outputs(model, (1, 28, 28)))


def test_a_published_state_dict_has_neither_counters_nor_shortcuts(tmp_path: Path) -> None:
    model = settled(resolve.build("resnet20-cifar", 10, (3, 16, 16)), (3, 16, 16))
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(("num_batches_tracked", "selects"))}
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 91.7}, tmp_path / "published.th"
    )
    loaded = checkpoint.load(tmp_path / "published.th", "resnet20-cifar")
    assert torch.equal(outputs(loaded.build(), (3, 16, 16)), outputs(model, (3, 16, 16)))


@pytest.mark.parametrize("arch", ["lenet5", "resnet56-cifar"])
def test_weights_without_an_arch_ask_for_it_by_name(tmp_path: Path, arch: str) -> None:
    shape = (1, 28, 28) if arch == "lenet5" else (3, 32, 32)
    torch.save(resolve.build(arch, 10, shape).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "weights.pt")
    assert "weights.pt" in caught.value.message
    assert f"--arch {arch}" in caught.value.hint


def test_an_unknown_arch_is_told_the_nearest(tmp_path: Path) -> None:
    torch.save(resolve.build(*LENET).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ArchError) as caught:
        checkpoint.load(tmp_path / "weights.pt", "lenet-5")
    assert "lenet5" in caught.value.hint


def test_a_state_dict_that_does_not_fit_names_keys_and_shapes(tmp_path: Path) -> None:
    state = dict(resolve.build(*LENET).state_dict())
    del state["fc1.bias"]
    state["extra.weight"] = torch.zeros(2, 2)
    state["conv2.weight"] = torch.zeros(50, 19, 5, 5)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "weights.pt", "lenet5").build()
    for part in ("lenet5", "fc1.bias", "extra.weight", "conv2.weight", "(50, 19, 5, 5)", "(50, 20, 5, 5)"):
        assert part in caught.value.message


def test_another_networks_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save(resolve.build(*LENET).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "weights.pt", "resnet20-cifar").build()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["0.weight", "0.bias", "1.running_var"])
@pytest.mark.parametrize("foreign", [False, True])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, net: str, value: float, key: str, foreign: bool) -> None:
    model = resolve.build(net, 5, tiny.SHAPE)
    state = model.state_dict()
    state[key].flatten()[-1] = value
    if foreign:
        torch.save(state, tmp_path / "model.pt")
    else:
        checkpoint.save(tmp_path / "model.pt", of(model, net, 5))
    with pytest.raises(CheckpointError, match=key):
        checkpoint.load(tmp_path / "model.pt", net).build()


# Pickled modules, and code named in a file.


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    model = resolve.build(*LENET)
    torch.save(model, tmp_path / "module.pt")
    for arch in (None, "lenet5"):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(tmp_path / "module.pt", arch)
        assert "--trust-pickle" in caught.value.hint
        assert "LeNet5" in caught.value.message
    trusted = checkpoint.load(tmp_path / "module.pt", "lenet5", trust_pickle=True).build()
    assert torch.equal(outputs(trusted, (1, 28, 28)), outputs(model, (1, 28, 28)))


def test_a_pickled_module_inside_a_training_checkpoint(tmp_path: Path) -> None:
    model = resolve.build(*LENET)
    torch.save({"epoch": 1, "model": model}, tmp_path / "module.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "module.pt", "lenet5")
    trusted = checkpoint.load(tmp_path / "module.pt", "lenet5", trust_pickle=True).build()
    assert torch.equal(outputs(trusted, (1, 28, 28)), outputs(model, (1, 28, 28)))


def test_code_that_a_file_names_runs_only_when_the_user_names_it_too(tmp_path: Path, marker: Path, net: str) -> None:
    path, code = tmp_path / "model.pt", Path(net.removesuffix(":build"))
    code.write_text(code.read_text() + f"open({str(marker)!r}, 'a').close()\n")
    checkpoint.save(path, of(resolve.build(net, 5, tiny.SHAPE), net, 5))
    marker.unlink()
    with pytest.raises(ArchError) as caught:
        checkpoint.load(path)
    assert f"--arch {net}" in caught.value.hint
    with pytest.raises(CheckpointError):
        checkpoint.load(path, "lenet5")
    assert not marker.exists()
    checkpoint.load(path, net).build()
    assert marker.exists()


@pytest.mark.parametrize("arch", ["os:system", "os:getcwd", "builtins:breakpoint", "antigravity:fly"])
def test_a_callable_from_the_library_is_code_too(tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(resolve, "load_callable", lambda *args: called.append(args))
    checkpoint.save(tmp_path / "model.pt", of(resolve.build(*LENET), arch, 10, (1, 28, 28)))
    with pytest.raises(InputError):
        checkpoint.load(tmp_path / "model.pt").build()
    assert not called


def test_a_file_cannot_pass_its_code_off_as_a_library(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for family in ("torchvision", "timm"):
        folder = Path(f"{family}:")
        folder.mkdir()
        (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef build(): pass\n")
        checkpoint.save(tmp_path / "model.pt", of(resolve.build(*LENET), f"{family}:/evil.py:build", 10, (1, 28, 28)))
        with pytest.raises(InputError):
            checkpoint.load(tmp_path / "model.pt").build()
        assert not marker.exists()


# Payloads. Each file is proved to be dangerous first: opened without the guard, it runs its payload.


class Payload:
    """Makes the marker when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


PAYLOADS: dict[str, Callable[[str], Payload]] = {
    "open": lambda marker: Payload(open, marker, "w"),
    "exec": lambda marker: Payload(exec, f"open({marker!r}, 'w').close()"),
    "system": lambda marker: Payload(os.system, f"touch {marker}"),
    "load": lambda marker: Payload(pickle.loads, pickle.dumps(Payload(open, marker, "w"))),
    "numpy": lambda marker: Payload(np.save, marker, 1),
}


def exists(marker: Path) -> bool:
    return marker.exists() or marker.with_suffix(".npy").exists()


def zip_with(change: Callable[[str, bytes], bytes | None], content: Any = None) -> bytes:
    """A checkpoint in the zip format whose entries went through `change` (None drops one)."""
    plain, result = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(4.0)}} if content is None else content, plain)
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(result, "w") as after:
        for entry in before.infolist():
            changed = change(entry.filename, before.read(entry))
            if changed is not None:
                after.writestr(entry.filename, changed)
    return result.getvalue()


class _Persistent(pickle.Pickler):
    """Writes `Storage(...)` objects as the persistent ids by which a checkpoint refers to its storages."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, Storage) else None


class Storage:
    def __init__(self, *parts: Any) -> None:
        self.id = parts


class Rebuilt:
    """A tensor as `torch.save` writes one."""

    def __init__(self, storage: Any, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), hooks: Any = None) -> None:
        self.args = (storage, 0, size, stride, False, OrderedDict() if hooks is None else hooks)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.args


def zip_of(obj: Any) -> bytes:
    """The zip format around this object."""
    buffer = io.BytesIO()
    _Persistent(buffer, protocol=2).dump(obj)
    return zip_with(lambda name, data: buffer.getvalue() if name.endswith("data.pkl") else data)


def saved(obj: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


def legacy(record: int, payload: Any) -> bytes:
    """The format of five pickles in a row, one of them replaced."""
    records = [MAGIC, PROTOCOL, SYSTEM, {"state_dict": {}}, []]
    records[record] = payload
    return b"".join(pickle.dumps(r, protocol=2) for r in records)


def tar_of(payload: Any) -> bytes:
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            data = pickle.dumps(payload, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return result.getvalue()


def ours_with(**parts: Any) -> dict[str, Any]:
    content = {
        "format": checkpoint.FORMAT,
        "version": "0",
        "arch": "lenet5",
        "classes": 10,
        "input_shape": [1, 28, 28],
        "preprocessing": {"mean": None, "std": None},
        "state_dict": {"w": torch.zeros(2)},
        "removed": {},
        "history": None,
        "data": {},
        "metrics": {},
    }
    return content | parts


FLOATS = (torch.FloatStorage, "0", "cpu", 4)
PLACES: dict[str, Callable[[Any], bytes]] = {
    **{f"raw pickle {p}": lambda payload, p=p: pickle.dumps(payload, protocol=p) for p in range(6)},
    "raw pickle in a dict": lambda payload: pickle.dumps({"state_dict": {"w": payload}}, protocol=2),
    "zip": saved,
    "zip, state dict": lambda payload: saved({"state_dict": payload}),
    "zip, weight": lambda payload: saved({"state_dict": {"w": payload, "v": torch.zeros(2)}}),
    "zip, deep": lambda payload: saved({"state_dict": {"w": torch.zeros(1)}, "args": [[(1, {"x": payload})]]}),
    "zip, key": lambda payload: saved({"state_dict": {}, payload: 1}),
    "zip, ours, history": lambda payload: saved(ours_with(history=payload)),
    "zip, ours, arch": lambda payload: saved(ours_with(arch=payload)),
    "zip, ours, format": lambda payload: saved(ours_with(format=payload)),
    "zip, storage type": lambda payload: zip_of({"w": Rebuilt(Storage("storage", payload, "0", "cpu", 4))}),
    "zip, storage key": lambda payload: zip_of({"w": Rebuilt(Storage("storage", torch.FloatStorage, payload, "cpu", 4))}),
    "zip, location": lambda payload: zip_of({"w": Rebuilt(Storage("storage", torch.FloatStorage, "0", payload, 4))}),
    "zip, storage size": lambda payload: zip_of({"w": Rebuilt(Storage("storage", torch.FloatStorage, "0", "cpu", payload))}),
    "zip, persistent id": lambda payload: zip_of({"w": Rebuilt(Storage(payload))}),
    "zip, tensor hooks": lambda payload: zip_of({"w": Rebuilt(Storage("storage", *FLOATS), hooks=payload)}),
    "zip, tensor size": lambda payload: zip_of({"w": Rebuilt(Storage("storage", *FLOATS), size=payload)}),
    **{f"legacy, record {r}": lambda payload, r=r: legacy(r, payload) for r in range(5)},
    "legacy, weight": lambda payload: saved({"state_dict": {"w": payload}}, _use_new_zipfile_serialization=False),
    "tar": tar_of,
}


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore")
def test_a_payload_is_refused_and_not_run(tmp_path: Path, marker: Path, place: str, kind: str) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(PLACES[place](PAYLOADS[kind](str(marker))))
    for arch in (None, "lenet5"):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path, arch)
        assert str(path) in caught.value.message
        assert caught.value.hint
    assert not exists(marker)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore")
def test_the_payloads_are_live(tmp_path: Path, marker: Path, place: str) -> None:
    (tmp_path / "hostile.pt").write_bytes(PLACES[place](PAYLOADS["open"](str(marker))))
    with contextlib.suppress(Exception):  # what comes after the payload does not matter
        torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert exists(marker)


# Files that are no checkpoint.


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


NO_CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello, world\n",
    "json": lambda: json.dumps({"state_dict": {}}).encode(),
    "zeros": lambda: bytes(4096),
    "picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "zip": zip_of_text,
    "npz": npz,
    "number": lambda: saved(5),
    "list": lambda: saved([torch.zeros(2)]),
    "tensor": lambda: saved(torch.zeros(2)),
    "empty dict": lambda: saved({}),
    "no weights": lambda: saved({"state_dict": {}}),
    "names only": lambda: saved({"state_dict": {"conv1.weight": "a string"}}),
    "optimizer": lambda: saved({"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}),
    "storage too short": lambda: zip_with(lambda name, data: data[:8] if name.endswith("data/0") else data),
    "storage too long": lambda: zip_with(lambda name, data: data * 2 if name.endswith("data/0") else data),
    "storage missing": lambda: zip_with(lambda name, data: None if name.endswith("data/0") else data),
    "no pickle": lambda: zip_with(lambda name, data: None if name.endswith("data.pkl") else data),
    "byte order": lambda: zip_with(lambda name, data: b"sideways" if name.endswith("byteorder") else data),
    "version": lambda: zip_with(lambda name, data: b"99999999" if name.endswith("/version") else data),
    "claims a huge storage": lambda: zip_of({"w": Rebuilt(Storage("storage", torch.FloatStorage, "0", "cpu", 10**12))}),
    "claims a negative storage": lambda: zip_of({"w": Rebuilt(Storage("storage", torch.FloatStorage, "0", "cpu", -4))}),
    "reaches beyond its storage": lambda: zip_of({"w": Rebuilt(Storage("storage", *FLOATS), (10**9,))}),
    "reaches before its storage": lambda: zip_of({"w": Rebuilt(Storage("storage", *FLOATS), (4,), (-1,))}),
    "nested to the recursion limit": lambda: legacy(3, None)[:-1] + b"(" * 100_000,
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
@pytest.mark.parametrize("arch", [None, "lenet5"])
def test_what_is_no_checkpoint_is_said_so(tmp_path: Path, kind: str, arch: str | None) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(NO_CHECKPOINTS[kind]())
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, arch)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path)
    assert "model.pt" in caught.value.hint
    for name in ("x" * 5000, "a\0b", ""):
        with pytest.raises(CheckpointError):
            checkpoint.load(name)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "script.pt").write_bytes(scripted())
    for arch in (None, "lenet5"):
        with pytest.raises(CheckpointError, match="TorchScript") as caught:
            checkpoint.load(tmp_path / "script.pt", arch)
        assert "state dict" in caught.value.hint


@pytest.mark.parametrize("suffix", [".onnx", ".ONNX", ".pt2", ".safetensors", ".h5"])
@pytest.mark.parametrize("content", [b"", saved({"state_dict": {"w": torch.zeros(2)}})], ids=["empty", "full"])
def test_other_formats_are_told_what_to_pass_instead(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not read here") as caught:
        checkpoint.load(path, "lenet5")
    assert "checkpoint" in caught.value.hint


def small(net: str, path: Path) -> Checkpoint:
    """A checkpoint of a few kilobytes."""
    model = resolve.build(net, 5, tiny.SHAPE)
    made = of(model, net, 5, mean=(0.1,) * 3, std=(0.2,) * 3, history={"norm": "l1", "layers": {"0": torch.rand(2, 4)}})
    checkpoint.save(path, made)
    return made


@pytest.mark.parametrize("legacy_format", [False, True])
def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path, net: str, legacy_format: bool) -> None:
    path = tmp_path / "model.pt"
    small(net, path)
    if legacy_format:
        path.write_bytes(saved(torch.load(path, weights_only=True), _use_new_zipfile_serialization=False))
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            checkpoint.load(path, net)


@pytest.mark.parametrize("legacy_format", [False, True])
def test_a_changed_byte_makes_another_checkpoint_or_none(
    tmp_path: Path, net: str, legacy_format: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    made = small(net, path)
    if legacy_format:
        whole = saved(torch.load(path, weights_only=True), _use_new_zipfile_serialization=False)
    else:
        whole = path.read_bytes()
    network = resolve.build(net, 5, tiny.SHAPE)
    monkeypatch.setattr(resolve, "build", lambda *_: copy.deepcopy(network))
    for offset in range(0, min(len(whole), 6000), 29):
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[offset] ^= bit
            path.write_bytes(damaged)
            try:
                checkpoint.load(path, made.arch).build()
            except InputError:
                continue


def test_a_checkpoint_with_wrong_parts_is_refused(tmp_path: Path) -> None:
    state = dict(resolve.build(*LENET).state_dict())
    path = tmp_path / "model.pt"
    wrong: list[dict[str, Any]] = [
        {"arch": 5},
        {"arch": ["lenet5"]},
        {"arch": torch.zeros(2)},
        {"arch": None},
        {"classes": "ten"},
        {"classes": float("inf")},
        {"classes": float("nan")},
        {"classes": torch.zeros(3)},
        {"classes": -3},
        {"classes": 10**12},
        {"input_shape": None},
        {"input_shape": [1, 28]},
        {"input_shape": [1, -28, 28]},
        {"input_shape": [1, 10**9, 10**9]},
        {"input_shape": "abc"},
        {"preprocessing": []},
        {"preprocessing": {"mean": torch.zeros(3), "std": torch.zeros(3)}},
        {"preprocessing": {"mean": 5, "std": 5}},
        {"removed": 3},
        {"data": "digits"},
        {"metrics": None},
        {"state_dict": [1]},
        {"state_dict": {}},
    ]
    failed = []
    for parts in wrong:
        torch.save(ours_with(**({"state_dict": state} | parts)), path)
        try:
            checkpoint.load(path).build()
        except InputError:
            continue
        except Exception as error:
            failed.append(f"{parts}: {type(error).__name__}: {error}")
        else:
            failed.append(f"{parts}: loaded")
    assert not failed, "\n".join(failed)


def test_a_checkpoint_with_parts_missing_is_refused(tmp_path: Path) -> None:
    whole = ours_with(state_dict=dict(resolve.build(*LENET).state_dict()))
    for part in whole.keys() - {"format", "version"}:
        torch.save({key: value for key, value in whole.items() if key != part}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / "model.pt")


STRANGE: dict[str, Callable[[], Tensor]] = {
    "integers": lambda: torch.zeros(10, 1, 5, 5, dtype=torch.int64),
    "no data": lambda: torch.zeros(20, 1, 5, 5, device="meta"),
    "sparse": lambda: torch.zeros(20, 1, 5, 5).to_sparse(),
    "complex": lambda: torch.zeros(20, 1, 5, 5, dtype=torch.complex64),
    "immense": lambda: torch.zeros(1).expand(10**13, 1, 5, 5),
    "scalar": lambda: torch.tensor(1.0),
    "no filters": lambda: torch.zeros(0, 1, 5, 5),
    "another kernel": lambda: torch.zeros(20, 1, 3, 3),
    "another rank": lambda: torch.zeros(20, 25),
    "narrower than its bias": lambda: torch.zeros(10, 1, 5, 5),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_strange_tensors_are_refused(tmp_path: Path, kind: str, foreign: bool) -> None:
    state = dict(resolve.build(*LENET).state_dict()) | {"conv1.weight": STRANGE[kind]()}
    torch.save(state if foreign else ours_with(state_dict=state), tmp_path / "model.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "model.pt", "lenet5").build()


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_are_refused(tmp_path: Path) -> None:
    state = dict(resolve.build(*LENET).state_dict())
    state["conv1.bias"] = torch.quantize_per_tensor(torch.zeros(20), 1.0, 0, torch.quint8)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "model.pt", "lenet5").build()


@pytest.mark.parametrize(
    "selects",
    [
        torch.tensor(True),
        torch.zeros(5).bool(),
        torch.zeros(3, 3, 3).bool(),
        torch.zeros(0, 16).bool(),
        torch.zeros(31, 16).bool(),
    ],
    ids=lambda selects: str(tuple(selects.shape)),
)
def test_a_shortcut_of_a_wrong_shape_is_refused(tmp_path: Path, selects: Tensor) -> None:
    state = dict(resolve.build("resnet20-cifar", 10, (3, 32, 32)).state_dict()) | {"layer2.0.shortcut.selects": selects}
    torch.save(ours_with(arch="resnet20-cifar", input_shape=[3, 32, 32], state_dict=state), tmp_path / "model.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "model.pt").build()


def test_layers_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    state = dict(resolve.build(*LENET).state_dict())
    state |= {"conv1.weight": torch.zeros(10, 1, 5, 5), "conv1.bias": torch.zeros(10)}  # conv2 still reads 20 channels
    torch.save(ours_with(state_dict=state), tmp_path / "model.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "model.pt").build()


def test_a_dict_inside_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(dict[str, Any]):
        looks = 0

        def get(self, key: Any, default: Any = None) -> Any:
            self.looks += 1
            if self.looks > 10_000:
                raise TimeoutError("it is looked into for ever")
            return super().get(key, default)

    endless = Counting()
    endless["state_dict"] = endless
    monkeypatch.setattr(checkpoint, "read", lambda *_: endless)
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "model.pt", "lenet5")


def test_first_weights_travel_with_a_checkpoint_and_must_have_its_shapes(tmp_path: Path) -> None:
    model = resolve.build("lenet5", 10, (1, 28, 28))
    known = checkpoint.Checkpoint(
        model.state_dict(), "lenet5", 10, (1, 28, 28), first=resolve.build("lenet5", 10, (1, 28, 28)).state_dict()
    )
    checkpoint.save(tmp_path / "a.pt", known)
    again = checkpoint.load(tmp_path / "a.pt")
    assert known.first is not None
    assert again.first is not None
    assert all(torch.equal(value, again.first[name]) for name, value in known.first.items())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["first"]["conv1.weight"] = content["first"]["conv1.weight"][:-1].clone()
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="first weights"):
        checkpoint.load(tmp_path / "b.pt")


VERSIONED = """
from torch import nn

class Picky(nn.Conv2d):
    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") not in (1, 2):
            raise ValueError("version should be set to 1 or 2 instead of None")
        super()._load_from_state_dict(state, prefix, metadata, *rest)

def build():
    return nn.Sequential(Picky(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
"""


def test_a_network_that_asks_for_the_version_of_its_layout_is_loaded(tmp_path: Path) -> None:
    """MNASNet is one: a plain dict of tensors holds no version."""
    (tmp_path / "net.py").write_text(VERSIONED)
    arch = f"{tmp_path / 'net.py'}:build"
    model = resolve.build(arch, 5, (3, 8, 8))
    path = tmp_path / "model.pt"
    checkpoint.save(path, of(model, arch, 5, (3, 8, 8)))
    assert torch.equal(outputs(checkpoint.load(path, arch).build(), (3, 8, 8)), outputs(model, (3, 8, 8)))
    torch.save(dict(model.state_dict()), path)
    assert torch.equal(outputs(checkpoint.load(path, arch).build(), (3, 8, 8)), outputs(model, (3, 8, 8)))
