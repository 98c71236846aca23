"""`--data`: a name or spec becomes three loaders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from slimcli.data import KNOWN, KnownData, arrays, user
from slimcli.data.fingerprint import fingerprint
from slimcli.data.folders import Files
from slimcli.data.loaders import Data
from slimcli.data.memory import Augment, ImageLoader, Images, place, split_off
from slimcli.errors import DataError
from slimcli.records import JsonDict
from slimcli.settings import DataSettings

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, as fractions of 1."""


def open_data(
    settings: DataSettings,
    recorded: JsonDict | None = None,
    *,
    batch_size: int,
    seed: int,
    device: str = "cpu",
    normalisation: Normalisation | None = None,
    published: Normalisation | None = None,
) -> Data:
    """Open the data set that the settings name, or the one `recorded` in a checkpoint, or the built-in digits.

    Normalisation: the settings', else the checkpoint's (`normalisation`), else the data set's usual one, else that of the
    network's published weights (`published`), else measured on the training images; `Data.notes` says where it was not given.
    Raises `DataError`.
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
        data = user.open_loaders(spec, settings, seed)
        classes = settled(settings.classes or (recorded.get("classes") if same else None), data.classes, spec)
        return replace(data, classes=classes, spec=data.spec | ({"classes": classes} if classes != data.classes else {}))
    known = KNOWN.get(spec)
    root = Path(settings.data_root or os.environ.get("SLIM_DATA") or (same and recorded.get("root")) or "data")
    found = arrays.read(spec, root, settings.workers)
    x_train, y_train, x_test, y_test = found.x_train, found.y_train, found.x_test, found.y_test
    found_classes = max(known.classes if known else 0, int(max(y_train.max(), y_test.max())) + 1)
    classes = settled(settings.classes or (recorded.get("classes") if same else None), found_classes, spec)
    mean, std, note = _normalisation(settings, normalisation, known, published, x_train)
    if val_data is None:
        rest, held = split_off(y_train, holdout)
        x_held, y_held = x_train[held], y_train[held]
        x_train, y_train = x_train[rest], y_train[rest]
    else:
        val = arrays.read(val_data, root, settings.workers)
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

    mark = fingerprint((x_train, y_train), (x_held, y_held), (x_test, y_test))
    (x_train, x_held, x_test), remarks = place([x_train, x_held, x_test], torch.device(device))

    def loader(images: Images, labels: Tensor) -> ImageLoader:
        return ImageLoader(images, labels.to(device), mean, std, batch_size)

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
        test=loader(x_test, y_test),
        spec={"name": spec, "holdout": holdout, "augment": augment}
        | ({"classes": classes} if classes != found_classes else {})
        | ({"val_data": absolute(val_data)} if val_data else {})
        | ({"root": str(root.resolve())} if known and spec != "digits" else {}),
        notes=(*notes, *remarks),
        fingerprint=mark,
    )


def settled(asked: int | None, found: int, spec: str) -> int:
    """How many classes there are; `DataError` where fewer are asked for than the labels tell apart."""
    if asked is not None and asked < found:
        raise DataError(f"--classes {asked} is too few: {spec} has labels up to {found - 1}", f"give at least {found}")
    return asked or found


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
    counted = isinstance(recorded.get("classes"), int | None)
    if not texts or not counted or not (holdout is None or (isinstance(holdout, float | int) and 0 < holdout <= 0.5)):
        raise DataError(f"the checkpoint's data spec is damaged: {recorded}", "name the data with --data")


def check_fits(data: Data, arch: str, classes: int, input_shape: tuple[int, ...]) -> None:
    """Raise `DataError` where a network for `classes` and `input_shape` cannot take this data."""
    if data.shape[0] != input_shape[0]:
        raise DataError(
            f"{arch} takes images with {input_shape[0]} channel(s), {data.name} has {data.shape[0]}",
            "choose data that fits it",
        )
    if data.task.classifies and not classes:
        raise DataError(
            f"{arch} was made for a task that is not classification, {data.name} has labels", "choose data that fits it"
        )
    if data.task.classifies and data.classes != classes:
        raise DataError(f"{arch} tells {classes} classes apart, {data.name} has {data.classes}", way_out(data, classes))
    if data.shape != tuple(input_shape):
        raise DataError(
            f"{arch} was made for images of {tuple(input_shape)}, {data.name} has {data.shape}",
            "choose data that fits it",
        )


def way_out(data: Data, classes: int) -> str:
    """What to do where a network tells `classes` apart and the data another number."""
    return "choose data that fits it" + (f", or say --classes {classes}" if classes > data.classes else "")


def _normalisation(
    settings: DataSettings,
    recorded: Normalisation | None,
    known: KnownData | None,
    published: Normalisation | None,
    images: Images,
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
    if published is not None and {len(published[0]), len(published[1])} == {channels}:
        return (
            *published,
            "the normalisation of the network's published weights is assumed; give --mean and --std if it was another",
        )
    most = 1_000 if isinstance(images, Files) else 10_000  # to decode takes its time
    some = images[torch.arange(0, len(images), max(1, len(images) // most))]
    sample = (some.read() if isinstance(some, Files) else some).double() / 255
    mean, std = sample.mean((0, 2, 3)).tolist(), sample.std((0, 2, 3)).clamp(min=1e-3).tolist()
    return (
        tuple(mean),
        tuple(std),
        "normalised by the training images' own mean and std; give --mean and --std if it was another",
    )
