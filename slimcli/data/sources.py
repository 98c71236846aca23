"""`--data`: a name or spec becomes three loaders."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimcli.data import FORMS, KNOWN, KnownData, folders, user
from slimcli.data.loaders import Data
from slimcli.data.memory import Augment, ImageLoader, split_off
from slimcli.errors import DataError, suggest
from slimcli.records import JsonDict
from slimcli.settings import DataSettings


@dataclass(frozen=True)
class _Arrays:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of both splits."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def open_data(
    settings: DataSettings,
    recorded: JsonDict | None = None,
    *,
    batch_size: int,
    seed: int,
    device: str = "cpu",
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> Data:
    """Open the data set that the settings name, or the one `recorded` in a checkpoint, or the built-in digits.

    Normalisation: the settings', else the checkpoint's (`normalisation`), else the data set's usual one, else measured on
    the training images, which `Data.notes` then says. Raises `DataError`.
    """
    recorded = recorded or {}
    _check_recorded(recorded)
    spec = absolute(settings.data or recorded.get("name") or "digits")
    same = spec == recorded.get("name")
    known_holdout = recorded.get("holdout") if same else None
    holdout = settings.holdout or known_holdout or 0.1
    val_data = settings.val_data or (recorded.get("val_data") if same else None)
    if val_data is not None and absolute(val_data) == spec:
        raise DataError(
            f"--val-data {val_data} is the data set itself: its test images would make the choices", "name another data set"
        )
    if ".py:" in spec and settings.data is None:
        raise DataError(
            f"the checkpoint was made with data from code ({spec}), which a file alone may not start",
            f"allow it with --data {spec}",
        )
    if ".py:" in spec:
        return user.open_loaders(spec, settings)
    known = KNOWN.get(spec)
    root = Path(settings.data_root or os.environ.get("SLIM_DATA") or (same and recorded.get("root")) or "data")
    arrays = _arrays(spec, root)
    x_train, y_train = arrays.x_train, arrays.y_train
    classes = max(known.classes if known else 0, int(max(y_train.max(), arrays.y_test.max())) + 1)
    mean, std, note = _normalisation(settings, normalisation, known, x_train)
    if val_data is None:
        rest, held = split_off(y_train, holdout)
        x_held, y_held = x_train[held], y_train[held]
        x_train, y_train = x_train[rest], y_train[rest]
    else:
        val = _arrays(val_data, root)
        x_held, y_held = val.x_test, val.y_test
        if x_held.shape[1:] != x_train.shape[1:]:
            raise DataError(
                f"--val-data {val_data} has images of {tuple(x_held.shape[1:])}, not {tuple(x_train.shape[1:])}",
                "give images of the same shape",
            )
        if int(y_held.max()) >= classes:
            raise DataError(
                f"--val-data {val_data} has the label {int(y_held.max())}, {spec} {classes} classes", "number them alike"
            )
    if not len(y_train):
        raise DataError(f"{spec} has too few images to hold some out for the choices", "give more")
    if settings.train_samples is not None and settings.train_samples < len(y_train):
        kept = split_off(y_train, settings.train_samples / len(y_train))[1]
        x_train, y_train = x_train[kept], y_train[kept]
    augment = settings.augment
    if augment == "auto":
        augment = (same and recorded.get("augment")) or (known.augment if known else "none")
    notes = [note] if note else []
    if settings.holdout and known_holdout and settings.holdout != known_holdout and settings.val_data is None:
        notes.append(
            f"--holdout {settings.holdout:g} is not the {known_holdout:g} that training left out: "
            "some of the images held out now were trained on"
        )

    def loader(images: Tensor, labels: Tensor) -> ImageLoader:
        return ImageLoader(images.to(device), labels.to(device), mean, std, batch_size)

    train = replace(loader(x_train, y_train), shuffle=True, augment=Augment.parse(augment), seed=seed)
    shape = tuple(x_train.shape[1:])
    return Data(
        name=spec,
        shape=(shape[0], shape[1], shape[2]),
        classes=classes,
        mean=mean,
        std=std,
        train=train,
        held_out=loader(x_held, y_held),
        test=loader(arrays.x_test, arrays.y_test),
        spec={"name": spec, "holdout": holdout, "augment": augment}
        | ({"val_data": absolute(val_data)} if val_data else {})
        | ({"root": str(root.resolve())} if known and spec != "digits" else {}),
        notes=tuple(notes),
    )


def absolute(spec: str) -> str:
    """The spec with its path made absolute, so that it means the same from another folder."""
    form, _, path = spec.partition(":")
    if form in ("npz", "folder") and path:
        return f"{form}:{Path(path).resolve()}"
    family, _, name = spec.rpartition(":")
    return f"{Path(family).resolve()}:{name}" if family.endswith(".py") else spec


def _check_recorded(recorded: JsonDict) -> None:
    """Raise `DataError` unless what a file says about its data can be what `open_data` wrote there."""
    holdout = recorded.get("holdout")
    texts = all(isinstance(recorded.get(key, ""), str | None) for key in ("name", "val_data", "root", "augment"))
    if not texts or not (holdout is None or (isinstance(holdout, float | int) and 0 < holdout <= 0.5)):
        raise DataError(f"the checkpoint's data spec is damaged: {recorded}", "name the data with --data")


def check_fits(data: Data, arch: str, classes: int, input_shape: tuple[int, ...]) -> None:
    """Raise `DataError` where a network for `classes` and `input_shape` cannot take this data."""
    if data.shape[0] != input_shape[0]:
        raise DataError(
            f"{arch} takes images with {input_shape[0]} channel(s), {data.name} has {data.shape[0]}",
            "choose data that fits it",
        )
    if data.classes != classes:
        raise DataError(f"{arch} tells {classes} classes apart, {data.name} has {data.classes}", "choose data that fits it")
    if data.shape != tuple(input_shape):
        raise DataError(
            f"{arch} was made for images of {tuple(input_shape)}, {data.name} has {data.shape}",
            "choose data that fits it",
        )


def _arrays(spec: str, root: Path) -> _Arrays:
    if spec == "digits":
        with resources.as_file(resources.files("slimcli.data") / "digits.npz") as path:
            return _npz(path)
    if spec in ("mnist", "fashion-mnist"):
        return _mnist(spec, root)
    if spec in ("cifar10", "cifar100"):
        return _npz(root / "cifar10.npz") if spec == "cifar10" and (root / "cifar10.npz").exists() else _cifar(spec, root)
    form, _, path_text = spec.partition(":")
    if form == "npz" and path_text:
        return _npz(Path(path_text))
    if form == "folder" and path_text:
        return _Arrays(*folders.read(Path(path_text)))
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


def _mnist(name: str, root: Path) -> _Arrays:
    from torchvision import datasets

    kind = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    train, test = _torchvision(lambda: (kind(root, train=True), kind(root, train=False)), name, root)
    return _Arrays(train.data[:, None], train.targets, test.data[:, None], test.targets)


def _cifar(name: str, root: Path) -> _Arrays:
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    train, test = _torchvision(lambda: (kind(root, train=True), kind(root, train=False)), name, root)
    return _Arrays(
        _channels_first(train.data), torch.tensor(train.targets), _channels_first(test.data), torch.tensor(test.targets)
    )


def _npz(path: Path) -> _Arrays:
    if not path.is_file():
        raise DataError(f"there is no file {path}", "check the path after npz:")
    try:
        with zipfile.ZipFile(path) as archive:
            folders.check_memory(str(path), 2 * sum(entry.file_size for entry in archive.infolist()))  # as read, as laid out
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
    return _Arrays(_channels_first(arrays["x_train"]), numbers[0], _channels_first(arrays["x_test"]), numbers[1])


def _channels_first(images: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _normalisation(
    settings: DataSettings,
    recorded: tuple[tuple[float, ...], tuple[float, ...]] | None,
    known: KnownData | None,
    images: Tensor,
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    channels = images.shape[1]
    if settings.mean is not None and settings.std is not None:
        if {len(settings.mean), len(settings.std)} - {channels}:
            raise DataError(
                f"--mean and --std have {len(settings.mean)} and {len(settings.std)} values, the images {channels} channel(s)",
                "give one value per channel, as fractions of 1",
            )
        return settings.mean, settings.std, ""
    if recorded is not None:
        if {len(recorded[0]), len(recorded[1])} != {channels}:
            raise DataError(
                f"the checkpoint normalises {len(recorded[0])} channel(s), the images have {channels}", "choose data that fits it"
            )
        return *recorded, ""
    if known is not None:
        return (
            known.mean,
            known.std,
            "the data set's usual normalisation is assumed; give --mean and --std if it was another",
        )
    sample = images[:: max(1, len(images) // 10_000)].double() / 255
    mean, std = sample.mean((0, 2, 3)).tolist(), sample.std((0, 2, 3)).clamp(min=1e-3).tolist()
    return (
        tuple(mean),
        tuple(std),
        "normalised by the training images' own mean and std; give --mean and --std if it was another",
    )
