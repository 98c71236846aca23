"""`folder:PATH`: train/ and val/ of class folders with images, decoded to uint8: all at once into memory, or batch by batch."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from slimcli import processes
from slimcli.errors import DataError

_SAMPLED = 100  # files whose bytes go into a fingerprint


@dataclass(frozen=True)
class Files:
    """Images that are in their files. They have the shape, the size in bytes and the indexing of a tensor of them.

    All are resized and centre-cropped to `size` (C, H, W). `workers` processes read ahead; None means half of the cores.
    """

    root: Path
    names: tuple[str, ...]
    size: tuple[int, int, int]
    workers: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self), *self.size)

    @property
    def nbytes(self) -> int:
        """How much memory they need, decoded."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, chosen: Tensor) -> Files:
        return replace(self, names=tuple(self.names[number] for number in chosen.tolist()))

    def read(self) -> Tensor:
        """All images, uint8 (N, C, H, W)."""
        images = _decoded(self.root, self.size, self.names)
        if isinstance(images, DataError):
            raise images
        return images

    def batches(self, batches: Sequence[Tensor], pinned: bool) -> Iterator[Tensor]:
        """The images of each batch of numbers, while workers decode the next ones."""
        loader: DataLoader[str] = DataLoader(
            self.names,  # type: ignore[arg-type]
            batch_sampler=[numbers.tolist() for numbers in batches],
            num_workers=min(_workers(self.workers), len(batches) - 1),  # a single batch is not worth a process
            collate_fn=partial(_decoded, self.root, self.size),
            pin_memory=pinned,
            generator=torch.Generator(),  # without it, each epoch would draw from the run's own random numbers
        )
        try:
            for images in loader:
                if isinstance(images, DataError):
                    raise images
                yield images
        except RuntimeError as error:
            raise DataError(
                f"a process that reads the images of {self.root} was ended ({str(error).splitlines()[0]})",
                "it may lack memory, or shared memory (/dev/shm): use fewer of them, --workers 0 uses none",
            ) from error

    def stamps(self) -> Iterator[str]:
        """Name and size of each file, and a checksum of a few: times of change would differ in every copy of the folder."""
        step = max(1, len(self.names) // _SAMPLED)
        for number, name in enumerate(self.names):
            path = self.root / name
            try:
                sample = zlib.crc32(path.read_bytes()) if number % step == 0 else 0
                yield f"{name} {path.stat().st_size} {sample:x}"
            except OSError as error:
                raise _unreadable(path, error) from error


def read(path: Path, workers: int | None = None) -> tuple[Files, Tensor, Files, Tensor]:
    """Train images and labels, test images and labels. All images take the size of the first one."""
    for part in ("train", "val"):
        if not (path / part).is_dir():
            raise DataError(f"{path} has no folder {part}/", "lay the images out as train/CLASS/*.png and val/CLASS/*.png")
    try:
        train, test = (ImageFolder(str(path / part)) for part in ("train", "val"))
    except FileNotFoundError as error:
        raise DataError(f"{path} has no images in its class folders: {error}", "each class is a folder with images") from error
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{path}: train/ and val/ differ in their classes ({', '.join(odd[:5])})",
            "give both the same class folders",
        )
    size = _pixels(Path(train.samples[0][0])).shape
    names = [tuple(os.path.relpath(name, path) for name, _ in part.samples) for part in (train, test)]
    x_train, x_test = (Files(path, part, (size[0], size[1], size[2]), workers) for part in names)
    return x_train, torch.tensor(train.targets), x_test, torch.tensor(test.targets)


def _workers(asked: int | None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2 // processes.local_world())) if asked is None else asked


def _decoded(root: Path, size: tuple[int, int, int], names: Sequence[str]) -> Tensor | DataError:
    """The images of those files, or what is wrong with one: an error that a worker raised would lose its words on the way."""
    fit = v2.Compose([v2.Resize(min(size[1:]), antialias=True), v2.CenterCrop(size[1:])])
    images = torch.empty(len(names), *size, dtype=torch.uint8)
    for number, name in enumerate(names):
        try:
            pixels = _pixels(root / name)
        except DataError as error:
            return error
        images[number] = pixels if pixels.shape == size else fit(pixels)
    return images


def _pixels(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            pixels: Tensor = v2.functional.pil_to_tensor(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return pixels


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"the image {path} cannot be read ({error})", "replace it, or remove it and start again")
