"""HBFP's raw material: the norm of every filter, epoch by epoch (Eq. 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from slimcli.disk import write_atomically
from slimcli.errors import CheckpointError, SettingsError
from slimcli.networks import checkpoint
from slimcli.networks.layers import by_filter, filters, layers_of
from slimcli.networks.weights import without_wrapper
from slimcli.records import ChannelGroup
from slimcli.settings import NORMS

_ORDERS = {"l1": 1, "l2": 2}


def filter_norms(weight: Tensor, norm: str = "l1") -> Tensor:
    """One norm per filter of a weight of shape (filters, ...) (Eq. 4); float64, so that finite weights have finite norms.

    Differentiable. l1 is the sum of absolute weights, l2 the Euclidean norm.
    """
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), _ORDERS[norm], dim=1, dtype=torch.float64)
    return norms


def _is_finite(weight: Tensor) -> bool:
    return weight.is_floating_point() and bool(weight.isfinite().all())


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and `torch.compile`."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


class NormHistory:
    """The norms of every conv and linear layer's filters over the epochs of a training.

    In any training loop::

        history = NormHistory(model)  # before the first epoch
        history.record()              # after every epoch

    `layers[name]` is a float32 tensor of shape (epochs, filters). After filters were removed the survivors keep their
    rows (`keep`) and later epochs are appended to them.
    """

    def __init__(self, model: nn.Module | None = None, norm: str = "l1") -> None:
        if norm not in NORMS:
            raise SettingsError(f"there is no norm {norm!r}", f"known are: {', '.join(NORMS)}")
        self.norm = norm
        self.layers: dict[str, Tensor] = {}
        self._model = model

    @property
    def epochs(self) -> int:
        """How many epochs were recorded."""
        return max((len(rows) for rows in self.layers.values()), default=0)

    @torch.no_grad()
    def record(self, model: nn.Module | None = None) -> None:
        """Append the present norms of every layer as one epoch."""
        source = model if model is not None else self._model
        if source is None:
            raise SettingsError("this history watches no model", "pass the model to record()")
        self._append({name: by_filter(layer) for name, layer in layers_of(_unwrapped(source)).items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self)(norm=self.norm)  # without the watched model: a copy belongs to a copy of it
        copied.layers = dict(self.layers)
        return copied

    def _append(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            row = filter_norms(weight, self.norm).clamp(max=torch.finfo(torch.float32).max).float().cpu()[None]
            before = self.layers.get(name)
            if before is not None and before.shape[1] != row.shape[1]:
                raise SettingsError(
                    f"{name} has {row.shape[1]} filters, its history {before.shape[1]}",
                    "tell the history what was removed: keep()",
                )
            self.layers[name] = row if before is None else torch.cat([before, row])

    def keep(self, layer: str, filters: Iterable[int]) -> None:
        """After a removal: the layer consists of these of its former filters, in this order."""
        self.layers[layer] = self.layers[layer][:, list(filters)]

    def of_group(self, group: ChannelGroup, window: int | None = None) -> list[Tensor]:
        """The histories (epochs, units) of the group's members, each in the order of the group's units."""
        rows = [self.layers[member.layer][:, list(member.channels)] for member in group.members]
        return [row[-window:] for row in rows] if window else rows

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"norm": self.norm, "layers": dict(self.layers)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The history that `state_dict` gave; `CheckpointError` for anything else."""
        layers = state.get("layers") if isinstance(state, Mapping) else None
        rows = list(layers.values()) if isinstance(layers, Mapping) else [None]
        if layers is None or not all(isinstance(each, Tensor) and each.ndim == 2 and _is_finite(each) for each in rows):
            raise CheckpointError(
                "the norm history in the checkpoint is damaged", "leave it out: observe epochs, or use --history"
            )
        history = cls(norm=str(state.get("norm")))
        history.layers = dict(layers)
        return history

    def save(self, path: str | Path) -> None:
        """Write the history alone to a file, which `slim prune --history FILE` reads."""
        write_atomically(Path(path), checkpoint.written({"history": self.state_dict()}))

    @classmethod
    def from_files(cls, paths: Iterable[str | Path], like: nn.Module, norm: str = "l1") -> Self:
        """The history that a user already has: one file written by `save`, or epoch checkpoints in the order of training.

        Raises `CheckpointError` where a file does not belong to the network `like`.
        """
        layers = layers_of(like)
        history = cls(norm=norm)
        for path in map(Path, paths):
            content = checkpoint.read(path)
            if isinstance(content, Mapping) and isinstance(content.get("history"), Mapping) and "state_dict" not in content:
                history = cls.from_state_dict(content["history"])
                if history.norm != norm:
                    raise CheckpointError(f"{path} has {history.norm} norms, not {norm}", f"use --norm {history.norm}")
                continue
            state = without_wrapper(checkpoint.state_dict_in(path, content), like.state_dict())
            weights = {name: state.get(f"{name}.weight") for name in layers}
            odd = next(
                (n for n, w in weights.items() if w is None or w.shape != layers[n].weight.shape or not _is_finite(w)), None
            )
            if odd is not None:
                raise CheckpointError(
                    f"{path} is no epoch of this network: {odd}.weight is missing, not finite or of another shape",
                    "check the list",
                )
            history._append({name: by_filter(layers[name], weight) for name, weight in weights.items() if weight is not None})
        history.check_fits(like)
        return history

    def check_fits(self, model: nn.Module) -> None:
        """Raise `CheckpointError` unless there is a column for every filter of the model."""
        for name, layer in layers_of(model).items():
            rows = self.layers.get(name)
            if rows is None or rows.shape[1] != filters(layer):
                raise CheckpointError(f"the history does not belong to this network: it does not fit {name}", "check --history")
