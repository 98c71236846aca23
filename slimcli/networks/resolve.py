"""`--arch`: a name becomes a network. The grammar: a built-in name, `torchvision:NAME`, `timm:NAME`, `file.py:callable`,
`package.module:callable`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from slimcli.errors import ArchError, suggest
from slimcli.foreign import load_callable
from slimcli.networks import ARCHS

Shape = tuple[int, int, int]


def is_foreign(arch: str) -> bool:
    """Whether building `arch` runs code that is neither ours nor an installed model library's."""
    return arch.rpartition(":")[0] not in ("", "torchvision", "timm")


def build(arch: str, classes: int, input_shape: Shape) -> nn.Module:
    """A freshly initialised network with `classes` outputs for images of `input_shape`; `ArchError` where there is none."""
    family, _, name = arch.rpartition(":")
    if not family:
        if arch not in ARCHS:
            raise ArchError(f"there is no network {arch!r}", suggest(arch, ARCHS))
        module_name, _, function = ARCHS[arch].builder.partition(":")
        builder = getattr(importlib.import_module(module_name), function)
        return _call(arch, lambda: builder(classes, input_shape))
    if family == "torchvision":
        return _torchvision(name, classes)
    if family == "timm":
        return _timm(name, classes, input_shape)
    return _call(arch, _foreign_builder(arch, family, name))


def _call(arch: str, builder: Callable[[], Any]) -> nn.Module:
    try:
        network = builder()
    except Exception as error:
        raise ArchError(f"{arch} cannot be built: {type(error).__name__}: {error}", "--debug shows where") from error
    if not isinstance(network, nn.Module):
        raise ArchError(f"{arch} returned a {type(network).__name__}", "it must return a torch.nn.Module")
    return network


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)  # classification only: the others fetch a backbone's weights when built
    if name not in known:
        raise ArchError(f"torchvision has no classification network {name!r}", suggest(name, known))
    return _call(f"torchvision:{name}", lambda: models.get_model(name, weights=None, num_classes=classes))


def _timm(name: str, classes: int, input_shape: Shape) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ArchError(f"timm:{name} needs the package timm", "pip install 'slimcli[timm]'") from None
    if name not in timm.list_models():
        raise ArchError(f"timm has no network {name!r}", suggest(name, timm.list_models()))
    return _call(f"timm:{name}", lambda: timm.create_model(name, num_classes=classes, in_chans=input_shape[0]))


def _foreign_builder(arch: str, family: str, name: str) -> Callable[[], Any]:
    builder = load_callable(arch, family, name, ArchError)
    return lambda: builder()
