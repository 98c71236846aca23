"""Image sets that live in memory as uint8, and are augmented and normalised in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from slimcli.errors import SettingsError

Batch = tuple[Tensor, Tensor]


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


@dataclass(frozen=True)
class ImageLoader:
    """Batches of one split. `images` is uint8 (N, C, H, W), `labels` int64 (N,); both stay on `device`.

    The order and the augmentation of an epoch follow from `seed` and its number alone, so that any epoch can be had again.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    shuffle: bool = False
    augment: Augment = Augment()
    seed: int = 0

    _padded: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pad = (self.augment.shift,) * 4
        object.__setattr__(self, "_padded", torch.nn.functional.pad(self.images, pad) if self.augment.shift else self.images)

    @property
    def samples(self) -> int:
        """How many images an epoch has."""
        return len(self.labels)

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return max(1, full + (rest > self._smallest))

    @property
    def _smallest(self) -> int:
        """A rest of this size is dropped: batch norm cannot train on a single image."""
        return 1 if self.shuffle and self.samples > 1 else 0

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of epoch `index`: float32 images (B, C, H, W), normalised, and labels (B,)."""
        device = self.images.device
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        order = torch.randperm(self.samples, generator=generator) if self.shuffle else torch.arange(self.samples)
        scale = 1 / (255 * torch.tensor(self.std, device=device).view(-1, 1, 1))
        offset = -torch.tensor(self.mean, device=device).view(-1, 1, 1) * 255 * scale
        for chosen in torch.split(order, self.batch_size)[: len(self)]:
            images = self._augmented(chosen, generator).float().mul_(scale).add_(offset)
            yield images, self.labels[chosen.to(device)]

    def _augmented(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        device, shift = self.images.device, self.augment.shift
        images = self.images
        if shift:
            size = 2 * shift + 1
            windows = self._padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # (N, C, size, size, H, W): a view
            corner = torch.randint(size, (2, len(chosen)), generator=generator).to(device)
            batch = windows[chosen.to(device), :, corner[0], corner[1]]
        else:
            batch = images[chosen.to(device)]
        if self.augment.flip:
            flipped = torch.rand(len(chosen), generator=generator).to(device) < 0.5
            batch = torch.where(flipped.view(-1, 1, 1, 1), batch.flip(3), batch)
        return batch

    def plain(self) -> ImageLoader:
        """The same images in order, without augmentation."""
        return replace(self, shuffle=False, augment=Augment())


def split_off(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (rest, held out): about `fraction` of every class, the same ones for the same labels every time."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = order[labels[order].argsort(stable=True)]
    count = max(1, round(len(labels) * fraction))
    positions = (torch.arange(count) * len(labels)).div(count, rounding_mode="floor")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_class[positions]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
