"""A network and the data that fit each other: what most commands start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from slimcli.data.loaders import Data
from slimcli.data.sources import check_fits, open_data
from slimcli.networks import checkpoint
from slimcli.networks.checkpoint import Checkpoint
from slimcli.settings import DataSettings
from slimcli.training.engine import pick_device


@dataclass(frozen=True)
class Subject:
    """`checkpoint` as read, with the data's normalisation filled in; `model` is built from it, on the device."""

    checkpoint: Checkpoint
    model: nn.Module
    data: Data


def open_subject(
    path: str | Path,
    settings: DataSettings,
    *,
    arch: str | None = None,
    trust_pickle: bool = False,
    batch_size: int = 500,
    seed: int = 0,
    device: str = "auto",
) -> Subject:
    """Read the checkpoint, open its data set (or the one in the settings), check that they fit and build the network.

    Raises `CheckpointError`, `ArchError` or `DataError`.
    """
    loaded = checkpoint.load(path, arch, trust_pickle)
    normalisation = (loaded.mean, loaded.std) if loaded.mean is not None and loaded.std is not None else None
    where = pick_device(device)
    data = open_data(settings, loaded.data, batch_size=batch_size, seed=seed, device=str(where), normalisation=normalisation)
    if loaded.foreign:
        # A foreign file says nothing about image sizes: the data does, and the tensors must then fit.
        # (Only the first conv's channels can be read off them.)
        convolutional = any(tensor.ndim == 4 for tensor in loaded.state_dict.values())
        channels = loaded.input_shape[0] if convolutional else data.shape[0]
        loaded = replace(loaded, input_shape=(channels, *data.shape[1:]))
    check_fits(data, loaded.arch, loaded.classes, loaded.input_shape)
    model = loaded.build().to(where)
    return Subject(replace(loaded, mean=data.mean, std=data.std, data=data.spec), model, data)
