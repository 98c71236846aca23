"""`folder:PATH`: train/ and val/ of class folders with images, decoded once into memory as uint8."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from slimcli.errors import DataError


def read(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images and labels, test images and labels. All images take the size of the first one (resized, centre-cropped)."""
    for part in ("train", "val"):
        if not (path / part).is_dir():
            raise DataError(f"{path} has no folder {part}/", "lay the images out as train/CLASS/*.png and val/CLASS/*.png")
    try:
        parts = [ImageFolder(str(path / part)) for part in ("train", "val")]
    except FileNotFoundError as error:
        raise DataError(f"{path} has no images in its class folders: {error}", "each class is a folder with images") from error
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise DataError(
            f"{path}: train/ and val/ differ in their classes ({', '.join(odd[:5])})",
            "give both the same class folders",
        )
    try:
        return _decoded(path, parts)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} has an image that cannot be read ({error})", "replace or remove it") from error


def _decoded(path: Path, parts: list[ImageFolder]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first = v2.functional.pil_to_tensor(parts[0][0][0])
    samples = sum(len(part) for part in parts)
    check_memory(str(path), 2 * samples * first.numel())  # image by image, and stacked
    side = (first.shape[1], first.shape[2])
    fit = v2.Compose([v2.Resize(min(side), antialias=True), v2.CenterCrop(side)])
    split: list[Tensor] = []
    for part in parts:
        fitted = []
        for picture, _ in part:
            image = v2.functional.pil_to_tensor(picture)
            fitted.append(image if image.shape == first.shape else fit(image))
        split += [torch.stack(fitted), torch.tensor(part.targets)]
    return split[0], split[1], split[2], split[3]


def check_memory(name: str, needed: int) -> None:
    """Raise `DataError` where `needed` bytes are more than this machine has free."""
    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise DataError(
            f"{name} needs {needed / 2**30:.1f} GiB in memory, {free / 2**30:.1f} GiB are free",
            "scale the images down, or stream them from --data FILE.py:CALLABLE that returns torch DataLoaders",
        )
