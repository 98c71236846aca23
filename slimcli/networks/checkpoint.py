"""Files to networks and back. Nothing in a file is ever run: every file is opened under `weights_only=True`, except a
pickled module that the caller trusts by name.

A slimcli checkpoint is a dict with `state_dict` and what is needed to rebuild the network around it: arch, input shape,
class count, preprocessing, data spec, what was removed or left out, norm history, metrics. The slim network's widths are read off
the shapes in its state dict.
"""

from __future__ import annotations

import pickle
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

import slimcli
from slimcli.disk import is_intact, write_atomically
from slimcli.errors import ArchError, CheckpointError, suggest
from slimcli.networks import ARCHS, blocks, resolve, weights, widths
from slimcli.records import JsonDict

FORMAT = "slimcli-checkpoint-1"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "model_ema", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and `torch.compile` put before every key."""
_ELSEWHERE = {
    ".onnx": "an ONNX file",
    ".pt2": "an exported program (.pt2)",
    ".safetensors": "a safetensors file",
    ".h5": "a Keras file",
}


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights and everything that `slim` knows about them."""

    state_dict: dict[str, Tensor]
    arch: str
    classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data: JsonDict = field(default_factory=dict)
    removed: dict[str, list[int]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    """Residual blocks that the network does without (`networks/blocks.py`)."""
    history: dict[str, Any] | None = None
    metrics: JsonDict = field(default_factory=dict)
    first: dict[str, Tensor] | None = None
    """The weights before training, where they are known, in the present shapes."""
    path: str = ""
    foreign: bool = False

    def build(self) -> nn.Module:
        """The network with these weights, in eval mode, its layers as wide as the state dict says.

        Raises `CheckpointError` where keys or shapes do not fit; a foreign state dict must fit the dense network.
        """
        network = resolve.build(self.arch, self.classes, self.input_shape)
        complaint = f"{self.path} does not fit {self.arch}"
        try:
            if not self.foreign:
                blocks.leave_out(network, self.left_out)
                widths.take(network, self.state_dict)
            weights.fit(network, self.state_dict, complaint)
            network.eval()
            if not self.foreign:  # widths that fit their layers need not fit each other
                with torch.no_grad():
                    network(torch.zeros(1, *self.input_shape))
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{complaint}: {_first_line(error)}", "save or copy the file again") from error
        return network

    def check_names(self, classes: int, input_shape: tuple[int, ...]) -> None:
        """Raise `CheckpointError` where a network for so many classes and such images has other keys, whatever their shapes.

        A foreign state dict says how many classes and channels it is for only where its keys are right.
        """
        try:
            network = resolve.build(self.arch, classes, input_shape)
        except ArchError:
            return  # the network may be for other images: that is told of the data
        missing, surplus, _ = weights.load(network, self.state_dict)
        weights.check_keys(missing, surplus, [], f"{self.path} does not fit {self.arch}")


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint as one file, in full or not at all."""
    write_atomically(path, written(content_of(checkpoint)))


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file holds. The tensors may be the network's own."""
    return {
        "format": FORMAT,
        "version": slimcli.__version__,
        "arch": checkpoint.arch,
        "classes": checkpoint.classes,
        "input_shape": list(checkpoint.input_shape),
        "preprocessing": {
            "mean": list(checkpoint.mean) if checkpoint.mean else None,
            "std": list(checkpoint.std) if checkpoint.std else None,
        },
        "state_dict": weights.at_rest(checkpoint.state_dict),
        "removed": checkpoint.removed,
        "left_out": list(checkpoint.left_out),
        "history": checkpoint.history,
        "data": checkpoint.data,
        "metrics": checkpoint.metrics,
    } | ({"first": weights.at_rest(checkpoint.first)} if checkpoint.first else {})


def written(content: Mapping[str, Any]) -> Callable[[IO[bytes]], None]:
    """What writes the content to a file, which `torch.load(..., weights_only=True)` opens."""
    return partial(torch.save, content)


def load(
    path: str | Path, arch: str | None = None, trust_pickle: bool = False, input_shape: resolve.Shape | None = None
) -> Checkpoint:
    """The checkpoint in a file. A foreign one (a state dict in any common wrapping) wants its `arch`, and its
    `input_shape` where that is not the usual one.

    Raises `CheckpointError` for a file that is none, or one whose tensors do not fit `arch` (naming keys and shapes).
    """
    path = Path(path)
    content = read(path, trust_pickle)
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        if not is_intact(path):
            raise CheckpointError(f"{path} is damaged: a checksum in it is wrong", "copy it again, or use another one")
        return _ours(path, content, arch)
    state = state_dict_in(path, content)
    if arch is None:
        raise CheckpointError(
            f"{path} holds weights but not the name of their network",
            f"name it with --arch, for example --arch {_guess(state)}",
        )
    spec = resolve.parse(arch)
    if not spec.family and spec.name not in ARCHS:
        raise ArchError(f"there is no network {arch!r}", suggest(spec.name, ARCHS))
    return _foreign(path, state, arch, input_shape)


def read(path: Path, trust_pickle: bool = False) -> Any:
    """What `torch.load` finds in the file, tensors and plain containers only; `CheckpointError` for anything else."""
    try:
        exists = path.exists()
    except OSError:  # a name that no file can have
        exists = False
    if not exists:
        raise CheckpointError(f"there is no file {path}", "check the path")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder", f"name the checkpoint in it, for example {path / 'model.pt'}")
    if path.suffix.lower() in _ELSEWHERE:
        raise CheckpointError(
            f"{path} is {_ELSEWHERE[path.suffix.lower()]}, which is not read here", "pass the PyTorch checkpoint it came from"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:
        # Whatever a hostile or damaged file makes the restricted reader raise, it is one answer: this is no checkpoint.
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    if "TorchScript" in text:
        return CheckpointError(f"{path} is a TorchScript archive, which is not read here", "pass the state dict it was made from")
    if ".tar format" in text:
        return CheckpointError(
            f"{path} is in the tar format of PyTorch before 0.4, which cannot be read safely",
            "save its state_dict() again with a current PyTorch",
        )
    if isinstance(error, pickle.UnpicklingError) and ("Unsupported" in text or "GLOBAL" in text) and _may_be_pickled(path):
        what = text.partition("GLOBAL ")[2].split(" ")[0] or "Python objects"
        return CheckpointError(
            f"{path} holds pickled code ({what}), and none of it was run",
            "pass its state_dict() instead; if it is a pickled module whose origin you trust, add --trust-pickle and --arch",
        )
    return CheckpointError(
        f"{path} is no PyTorch checkpoint, or it is damaged ({type(error).__name__})", "save or copy the file again"
    )


def _may_be_pickled(path: Path) -> bool:
    """Whether the file begins as torch's archives (zip) and its older pickles do; text, for one, does not."""
    with path.open("rb") as file:
        return file.read(1) in (b"P", b"\x80")


def _ours(path: Path, content: Mapping[str, Any], arch: str | None) -> Checkpoint:
    try:
        recorded = content["arch"]
        if not isinstance(recorded, str):
            raise TypeError("arch is no text")
        checkpoint = Checkpoint(
            state_dict=_tensors(path, content["state_dict"]),
            arch=recorded,
            classes=int(content["classes"]),
            input_shape=tuple(content["input_shape"]),
            mean=_triple(content["preprocessing"]["mean"]),
            std=_triple(content["preprocessing"]["std"]),
            data=dict(content["data"]),
            removed=dict(content["removed"]),
            left_out=tuple(content.get("left_out", ())),  # a file of an older version has none
            history=content["history"],
            metrics=dict(content["metrics"]),
            first=_first(path, content),
            path=str(path),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} lacks a part of a slimcli checkpoint: {error}", "write it again with slim") from error
    if arch is not None:
        if not _names(arch, recorded):
            raise CheckpointError(f"{path} is a {recorded}, not a {arch}", "leave --arch out: the checkpoint knows its network")
        own, given = resolve.parse(recorded), resolve.parse(arch)
        if given.family != own.family:  # its code lies elsewhere
            return replace(checkpoint, arch=str(replace(own, family=given.family)))
    if arch is None and resolve.is_foreign(recorded):
        raise ArchError(
            f"{path} needs code from outside ({recorded}), which a file alone may not start",
            f"allow it with --arch {shlex.quote(recorded)} (in Python arch=), from where the code lies or with its path",
        )
    return checkpoint


def _names(arch: str, recorded: str) -> bool:
    """Whether `arch` is the recorded one, with its arguments or without any; a user's code may lie elsewhere."""
    own, given = resolve.parse(recorded), resolve.parse(arch)
    if resolve.is_foreign(recorded) and resolve.is_foreign(arch):
        own = replace(own, family=given.family)
    return given in (own, resolve.parse(own.bare))


def _first(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    if "first" not in content:
        return None
    first = _tensors(path, content["first"])
    if {key: value.shape for key, value in first.items()} != {k: v.shape for k, v in content["state_dict"].items()}:
        raise ValueError("its first weights are of other shapes than its weights")
    return first


def _triple(values: list[float] | None) -> tuple[float, ...] | None:
    return tuple(values) if values else None


def state_dict_in(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for _ in range(4):  # no deeper: a dict can hold itself
        if not isinstance(content, Mapping) or not any(isinstance(content.get(key), Mapping | nn.Module) for key in _WRAPPERS):
            break
        content = next(content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping | nn.Module))
        if isinstance(content, nn.Module):
            content = content.state_dict()
    return {_bare(key): value for key, value in _tensors(path, content).items()}


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict",
            f"it must be one, or a dict that has it under {', '.join(_WRAPPERS[:-1])} or {_WRAPPERS[-1]}",
        )
    for key, value in content.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{path}: {key} is no plain tensor of real numbers", "save the state_dict() of the float network"
            )
    return {str(key): value for key, value in content.items()}


def _bare(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = next(key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix))
    return key


def _guess(state: Mapping[str, Tensor]) -> str:
    """The built-in network whose keys the state dict has, as an example for the message."""
    names = {key for key in state if not key.endswith("num_batches_tracked")}
    for name, arch in ARCHS.items():
        expected = resolve.build(name, 10, arch.input_shape).state_dict()
        if names <= expected.keys() and {key for key in expected if key.endswith("weight")} <= names:
            return name
    return "file.py:build"


def _foreign(path: Path, state: dict[str, Tensor], arch: str, shape: resolve.Shape | None) -> Checkpoint:
    name = resolve.parse(arch).bare
    input_shape = shape or (ARCHS[name].input_shape if name in ARCHS else (3, 224, 224))
    matrices = [value for value in state.values() if value.ndim >= 2]
    first = next((value for value in matrices if value.ndim == 4), None)
    if first is not None and shape is None:
        input_shape = (first.shape[1], *input_shape[1:])
    classes = matrices[-1].shape[0] if matrices else 0
    return Checkpoint(state, arch, classes, input_shape, path=str(path), foreign=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
