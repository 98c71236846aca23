"""Batches of uint8 images that are on the device, in the host's memory or in files: augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import psutil
import torch
from torch import Tensor

from slimcli import processes
from slimcli.data.folders import Files
from slimcli.errors import DataError, SettingsError
from slimcli.measures import CLASSIFICATION, Task

Batch = tuple[Tensor, Tensor]
Images = Tensor | Files


@dataclass(frozen=True)
class Augment:
    """Per-sample random shifts of up to `shift` pixels (edges filled with 0), and horizontal flips."""

    shift: int = 0
    flip: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """`none`, or a comma-separated list of `shift:N` and `flip`."""
        shift, flip = 0, False
        for part in text.split(","):
            name, _, number = part.strip().partition(":")
            if name == "shift" and number.isdecimal():
                shift = int(number)
            elif part.strip() == "flip":
                flip = True
            elif part.strip() != "none":
                raise SettingsError(f"--augment {text!r} is not understood", "use auto, none, shift:N, flip or shift:N,flip")
        return cls(shift, flip)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A column for each image: the corner (down, across) of its window in the padded image, and whether it is flipped."""
        corners, flips = torch.zeros(2, count, dtype=torch.int64), torch.zeros(1, count, dtype=torch.int64)
        if self.shift:
            corners = torch.randint(2 * self.shift + 1, (2, count), generator=generator)
        if self.flip:
            flips = (torch.rand(1, count, generator=generator) < 0.5).long()
        return torch.cat([corners, flips])

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images shifted and flipped as was drawn."""
        down, across, flipped = drawn
        if self.shift:
            height, width = images.shape[2:]
            padded = torch.nn.functional.pad(images, (self.shift,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, corners down, corners across, H, W): a view
            images = windows[torch.arange(len(images), device=images.device), :, down, across]
        if self.flip:
            images = torch.where(flipped.bool().view(-1, 1, 1, 1), images.flip(3), images)
        return images


@dataclass(frozen=True)
class ImageLoader:
    """Batches of one split. `images` is uint8 (N, C, H, W), wherever it is; `labels`, int64 (N,), are on the device.

    The order and the augmentation of an epoch follow from `seed` and its number alone, so that any epoch can be had again.
    Of every batch, the loader gives the images number `rank`, `rank + world`, …: the part of one of `world` processes.
    """

    task: ClassVar[Task] = CLASSIFICATION
    images: Images
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    shuffle: bool = False
    augment: Augment = Augment()
    seed: int = 0
    rank: int = 0
    world: int = 1

    @property
    def samples(self) -> int:
        """How many images an epoch has, over all processes."""
        return len(self.labels)

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        smallest = 2 * self.world if self.shuffle else 1  # batch norm cannot train on a single image
        return max(1, full + (rest >= smallest))

    def shard(self, rank: int, world: int) -> ImageLoader:
        """The part of every batch that process `rank` of `world` takes; together the parts are the batch, bit for bit."""
        return replace(self, rank=rank, world=world)

    def plain(self) -> ImageLoader:
        """The same images in order, without augmentation."""
        return replace(self, shuffle=False, augment=Augment())

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch `index`: float32 images (B, C, H, W), normalised, and labels (B,)."""
        device = self.labels.device
        scale = 1 / (255 * torch.tensor(self.std, device=device).view(-1, 1, 1))
        offset = -torch.tensor(self.mean, device=device).view(-1, 1, 1) * 255 * scale
        plan = self._plan(index)
        for part, images in zip(_moved(plan, device), self._fetched([part[0] for part in plan]), strict=True):
            yield self.augment.apply(images, part[1:]).float().mul_(scale).add_(offset), self.labels[part[0]]

    def _plan(self, index: int) -> list[Tensor]:
        """For each batch, a column for each image: its number, and what is drawn for it.

        Drawn for the whole batch, then cut to this process's part: so what is drawn does not depend on how many share it.
        """
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, index))
        order = torch.randperm(self.samples, generator=generator) if self.shuffle else torch.arange(self.samples)
        batches = torch.split(order, self.batch_size)[: len(self)]
        whole = (torch.cat([batch[None], self.augment.draw(len(batch), generator)]) for batch in batches)
        return [batch[:, self.rank :: self.world] for batch in whole]

    def _fetched(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of numbers, as bytes on the device."""
        device, source = self.labels.device, self.images
        fetched: Iterator[Tensor]
        if isinstance(source, Files):
            fetched = source.batches(batches, pinned=device.type == "cuda")
        else:
            fetched = (source.index_select(0, numbers) for numbers in _moved(batches, source.device))
        for images in fetched:
            # From pinned memory they are copied while the device computes.
            yield images if images.device == device else images.pin_memory().to(device, non_blocking=True)


def epoch_seed(seed: int, index: int) -> int:
    """What an epoch's random numbers start from."""
    return (seed * 1_000_003 + index) % 2**63


def place(splits: list[Images], device: torch.device) -> tuple[list[Images], list[str]]:
    """The images of all splits as near to the device as they fit, and notes where that is not on it."""
    notes = []
    files = sum(images.nbytes for images in splits if isinstance(images, Files))
    if files and not _fits(files * processes.local_world()):  # each process holds its own
        notes.append("the images do not fit into memory: they are read from their files again in every epoch")
    else:
        splits = [images.read() if isinstance(images, Files) else images for images in splits]
    tensors = [images for images in splits if isinstance(images, Tensor)]
    # Half of what is free is left to the network and its activations.
    if device.type == "cuda" and sum(images.nbytes for images in tensors) > torch.cuda.mem_get_info(device)[0] / 2:
        notes.append("the images do not fit into the GPU's memory: they are copied there batch by batch")
        return splits, notes
    return [images.to(device) if isinstance(images, Tensor) else images for images in splits], notes


def check_memory(name: str, needed: int) -> None:
    """Raise `DataError` where `needed` bytes are more than this machine has free."""
    if not _fits(needed):
        raise DataError(
            f"{name} needs {needed / 2**30:.1f} GiB in memory, {psutil.virtual_memory().available / 2**30:.1f} GiB are free",
            "lay it out as folder:PATH, which need not fit, or give --data FILE.py:CALLABLE that returns torch DataLoaders",
        )


def _fits(needed: int) -> bool:
    return needed <= 0.8 * psutil.virtual_memory().available


def split_off(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (rest, held out): about `fraction` of every class, the same ones for the same labels every time."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = order[labels[order].argsort(stable=True)]
    count = max(1, round(len(labels) * fraction))
    positions = (torch.arange(count) * len(labels)).div(count, rounding_mode="floor")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_class[positions]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _moved(parts: list[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """The parts on the device, copied all at once: the host waits for the device at each such copy."""
    return torch.split(torch.cat(parts, -1).to(device), [part.shape[-1] for part in parts], -1)
