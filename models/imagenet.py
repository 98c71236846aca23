"""ImageNet as it is usually trained on (random crops of 224 x 224, flips), for `--data models/imagenet.py:loaders`.

Read from `$SLIM_DATA/imagenet`, laid out as `train/CLASS/*` and `val/CLASS/*`. A fiftieth of the training images is held out.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

BATCH = 256
NORMALISE = [
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]
TRAIN = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), *NORMALISE])
TEST = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), *NORMALISE])


def loaders() -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, held-out and test batches."""
    root = Path(os.environ.get("SLIM_DATA", "data")) / "imagenet"
    train, plain, test = (ImageFolder(root / part, how) for part, how in (("train", TRAIN), ("train", TEST), ("val", TEST)))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    held = max(1, len(order) // 50)
    workers = min(16, len(os.sched_getaffinity(0)))

    def batches(images: ImageFolder | Subset, shuffle: bool = False) -> DataLoader:
        generator = torch.Generator()  # its own: the order of an epoch then follows from the epoch's number
        return DataLoader(images, BATCH, shuffle=shuffle, num_workers=workers, generator=generator)

    return batches(Subset(train, sorted(order[held:])), True), batches(Subset(plain, sorted(order[:held]))), batches(test)
