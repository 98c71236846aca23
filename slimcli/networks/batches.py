"""Batches: images first, and behind them whatever the loss and the score know what to do with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from slimcli.errors import DataError


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with all its tensors on the device, however they are nested."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


def part_of(batch: Any, rank: int, world: int) -> Any:
    """Of a batch of N images what belongs to those number `rank`, `rank + world`, ... `DataError` where a tensor has other than
    N rows: which of them belong to which image is then not known.
    """
    count = len(batch[0])

    def rows(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != count:
            raise DataError(
                f"a batch of {count} images holds a tensor of shape {tuple(tensor.shape)}, which several processes cannot share",
                "give tensors with a row for each image, or train in one process",
            )
        return tensor[rank::world]

    return tree_map_only(Tensor, rows, batch)
