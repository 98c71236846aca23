"""A network and the data that fit each other: what most commands start from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from slimcli.data.loaders import Data
from slimcli.data.sources import check_fits, open_data, way_out
from slimcli.errors import DataError
from slimcli.networks import resolve
from slimcli.networks.checkpoint import Checkpoint
from slimcli.networks.modes import try_layout
from slimcli.networks.tasks import loss_of, moved, score_of
from slimcli.settings import DataSettings
from slimcli.training.group import pick_device


@dataclass(frozen=True)
class Subject:
    """`checkpoint` as read, with the data's normalisation filled in; `model` is built from it, on the device."""

    checkpoint: Checkpoint
    model: nn.Module
    data: Data


def open_subject(
    loaded: Checkpoint, settings: DataSettings, *, batch_size: int = 500, seed: int = 0, device: str = "auto"
) -> Subject:
    """Open the checkpoint's data set (or the one in the settings), check that they fit and build the network.

    Raises `CheckpointError`, `ArchError` or `DataError`.
    """
    if loaded.foreign and settings.data is None:
        raise DataError(f"{loaded.path} does not say what data its network is for", "name it with --data")
    normalisation = (loaded.mean, loaded.std) if loaded.mean is not None and loaded.std is not None else None
    where = pick_device(device)
    published = resolve.normalisation(loaded.arch) if loaded.foreign else None
    data = open_data(
        settings,
        loaded.data,
        batch_size=batch_size,
        seed=seed,
        device=str(where),
        normalisation=normalisation,
        published=published,
    )
    if loaded.foreign:
        # A foreign file says nothing about image sizes: the data does, and the tensors must then fit.
        # (Only the first conv's channels can be read off them.)
        convolutional = any(tensor.ndim == 4 for tensor in loaded.state_dict.values())
        channels = loaded.input_shape[0] if convolutional else data.shape[0]
        loaded = replace(loaded, input_shape=(channels, *data.shape[1:]))
        loaded.check_names(data.classes, data.shape)
    check_fits(data, loaded.arch, loaded.classes, loaded.input_shape)
    model = loaded.build().to(where)
    check_takes(model, data, loaded.arch)
    return Subject(replace(loaded, mean=data.mean, std=data.std, data=data.spec), model, data)


@torch.no_grad()
def check_takes(model: nn.Module, data: Data, arch: str) -> None:
    """Raise `DataError` unless the network runs on the data's images and tells as many classes apart; where the data has its own
    loss and score, unless these work on it. Ends in eval mode.
    """
    try:
        outputs = model.eval()(torch.zeros(2, *data.shape, device=next(model.parameters()).device))
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{arch} cannot take images of {data.shape} from {data.name} ({type(error).__name__}: {first_line[:120]})",
            "choose data that fits it",
        ) from error
    try_layout(model, torch.zeros(2, *data.shape, device=next(model.parameters()).device))
    if not data.task.classifies:
        _check_task(model, data)
        return
    shape = getattr(outputs, "shape", None)
    if shape != (2, data.classes):
        found = f"gives {tuple(shape)} for two images" if shape is not None else f"gives a {type(outputs).__name__}"
        hint = way_out(data, shape[1] if shape is not None and len(shape) == 2 else 0)
        if shape is None:
            hint = "have it return one tensor, or bring a loss and a score of your own: --data file.py:callable"
        raise DataError(f"{arch} {found}, and {data.name} has {data.classes} classes", hint)


def _check_task(model: nn.Module, data: Data) -> None:
    """Raise `DataError` where the loss or the score of the data does not work on the held-out split."""
    device = next(model.parameters()).device
    with torch.enable_grad():
        loss_of(data.task, model, moved(next(iter(data.held_out.epoch(0))), device))
    score_of(data.task, model, (moved(batch, device) for batch in data.held_out.epoch(0)))
