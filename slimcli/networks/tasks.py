"""A user's loss and score, asked on batches: images first, and behind them whatever the two know what to do with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slimcli.errors import DataError, SlimError
from slimcli.measures import Task


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


def loss_of(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """The task's own loss of a batch; `DataError` where it raises, or gives no scalar that could be trained on."""
    assert task.loss is not None
    with _named("loss"):
        loss = task.loss(model, batch)
    if not isinstance(loss, Tensor) or loss.ndim or (torch.is_grad_enabled() and not loss.requires_grad):
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise DataError(f"the loss of the data is {what}", "return a scalar tensor that depends on the model's outputs")
    return loss


def score_of(task: Task, model: nn.Module, batches: Iterator[Any]) -> float:
    """The task's own score over these batches; `DataError` where it raises, or gives no finite number."""
    assert task.score is not None
    with _named("score"):
        score = task.score(model, batches)
    try:
        value = float(score)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"the score {task.measure.name} of the data is {score!r}", "return a finite number")
    return value


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say that it was the user's own function that failed."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SlimError) or is_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"the {what} of the data fails: {type(error).__name__}: {first_line}",
            "it is called as loss(model, batch) or score(model, batches); --debug shows where",
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is why it was raised."""
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def same_outputs(one: Any, other: Any) -> bool:
    """Whether two networks gave the same, bit by bit, whatever the form of their outputs."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
