"""A data set as it is stored: npz files, torchvision's sets and folders of images become images and labels of two splits."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from slimcli.data import FORMS, KNOWN, folders
from slimcli.data.memory import Images, check_memory
from slimcli.errors import DataError, suggest


@dataclass(frozen=True)
class Arrays:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of both splits. A folder's images are still in their files."""

    x_train: Images
    y_train: Tensor
    x_test: Images
    y_test: Tensor


def read(spec: str, root: Path, workers: int | None = None) -> Arrays:
    """The data set of that name or spec. `workers` read ahead where a folder does not fit into memory. Raises `DataError`."""
    if spec == "digits":
        with resources.as_file(resources.files("slimcli.data") / "digits.npz") as path:
            return _npz(path)
    if spec.removesuffix("32") in ("mnist", "fashion-mnist"):
        return _mnist(spec, root)
    if spec in ("cifar10", "cifar100"):
        return _npz(root / "cifar10.npz") if spec == "cifar10" and (root / "cifar10.npz").exists() else _cifar(spec, root)
    form, _, path_text = spec.partition(":")
    if form == "npz" and path_text:
        return _npz(Path(path_text))
    if form == "folder" and path_text:
        return Arrays(*folders.read(Path(path_text), workers))
    raise DataError(f"there is no data set {spec!r}", f"{suggest(spec, KNOWN)} (or {', '.join(FORMS)})")


def _torchvision(build: Callable[[], Any], name: str, root: Path) -> Any:
    if not root.is_dir():
        raise DataError(
            f"{name} is looked for in {root}, which does not exist",
            "name its folder with --data-root or the variable SLIM_DATA",
        )
    try:
        return build()
    except Exception as error:  # a missing file, or a damaged one: torchvision raises many kinds
        raise DataError(
            f"{name} is not in {root}, or damaged",
            "name another folder with --data-root or SLIM_DATA, laid out as torchvision does",
        ) from error


def _mnist(name: str, root: Path) -> Arrays:
    from torchvision import datasets

    kind = datasets.FashionMNIST if name.startswith("fashion") else datasets.MNIST
    train, test = _torchvision(lambda: (kind(root, train=True), kind(root, train=False)), name, root)
    x_train, x_test = (_as_cifar(x) if name.endswith("32") else x for x in (train.data[:, None], test.data[:, None]))
    return Arrays(x_train, train.targets, x_test, test.targets)


def _as_cifar(images: Tensor) -> Tensor:
    """(N, 1, 28, 28) as (N, 3, 32, 32): two black pixels on each side, the grey in three channels (which share its memory)."""
    return functional.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1)


def _cifar(name: str, root: Path) -> Arrays:
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    train, test = _torchvision(lambda: (kind(root, train=True), kind(root, train=False)), name, root)
    return Arrays(
        _channels_first(train.data), torch.tensor(train.targets), _channels_first(test.data), torch.tensor(test.targets)
    )


def _npz(path: Path) -> Arrays:
    if not path.is_file():
        raise DataError(f"there is no file {path}", "check the path after npz:")
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(str(path), 2 * sum(entry.file_size for entry in archive.infolist()))  # as read, as laid out
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except KeyError as error:
        raise DataError(f"{path} lacks an array: {error}", "it needs x_train, y_train, x_test and y_test") from error
    except DataError:
        raise
    except Exception as error:  # a damaged archive makes zipfile, zlib and numpy raise many kinds
        raise DataError(f"{path} is no npz file of plain arrays, or it is damaged ({error})", "write it again") from error
    for key in ("x_train", "x_test"):
        if arrays[key].dtype != np.uint8 or arrays[key].ndim not in (3, 4) or len(arrays[key]) == 0:
            raise DataError(
                f"{path}: {key} is {arrays[key].dtype} of shape {arrays[key].shape}",
                "images must be uint8, N x H x W (x C)",
            )
        if 0 in arrays[key].shape:
            raise DataError(f"{path}: {key} is of shape {arrays[key].shape}", "images must have a size")
        name = key.replace("x", "y", 1)
        labels = arrays[name]
        if labels.dtype.kind not in "iu" or labels.ndim == 0 or labels.size != len(labels):
            raise DataError(
                f"{path}: {name} is {labels.dtype} of shape {labels.shape}", "labels must be whole numbers, one per image"
            )
        if len(arrays[key]) != len(labels):
            raise DataError(f"{path}: {key} and its labels differ in length", "one label per image")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise DataError(f"{path}: x_train and x_test hold images of different shapes", "give images of one shape")
    numbers = [torch.from_numpy(arrays[key].astype(np.int64).reshape(-1)) for key in ("y_train", "y_test")]
    if any(int(part.min()) < 0 for part in numbers):
        raise DataError(f"{path} has negative labels", "number the classes from 0")
    return Arrays(_channels_first(arrays["x_train"]), numbers[0], _channels_first(arrays["x_test"]), numbers[1])


def _channels_first(images: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
