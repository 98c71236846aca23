"""`--arch`: a name becomes a network. The grammar: a built-in name, `torchvision:NAME`, `timm:NAME`, `file.py:callable`,
`package.module:callable`; each may end in arguments for what builds it, `(width=32, act='relu')`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from slimcli.errors import ArchError, suggest
from slimcli.foreign import load_callable
from slimcli.networks import ARCHS
from slimcli.networks.layers import check_numbers

Shape = tuple[int, ...]


_FORM = re.compile(r"(?:(?P<family>.*?\.py|[^()]*):)?(?P<name>[\w.-]*)(?:\((?P<arguments>.*)\))?", re.DOTALL)


_NO_LITERAL = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)
"""What reading a Python literal may raise."""


@dataclass(frozen=True)
class Spec:
    """An arch in its parts; `family` is empty for a built-in."""

    family: str
    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return self.bare + (f"({arguments})" if arguments else "")

    @property
    def bare(self) -> str:
        """Without arguments."""
        return f"{self.family}:{self.name}" if self.family else self.name


def parse(arch: str) -> Spec:
    """The parts of `arch`; `ArchError` where it is not of that form."""
    form = _FORM.fullmatch(arch)
    if form is None:
        raise ArchError(f"there is no network {arch!r}", "see `slim list archs`")
    try:
        call = ast.parse(f"f({form['arguments'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("no call with keywords alone")
        if not all(each.arg for each in call.keywords):
            raise ValueError("a keyword without a name")
        arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except _NO_LITERAL as error:
        raise ArchError(
            f"{arch}: its arguments are not key=value", "numbers, or text in quotes: (width=32, act='relu')"
        ) from error
    return Spec(form["family"] or "", form["name"], arguments)


def with_arguments(arch: str, given: Sequence[str]) -> str:
    """`arch` with these arguments (each `key=value`) beside its own. A value that is no Python literal is text."""
    spec, arguments = parse(arch), {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals or not key.isidentifier():
            raise ArchError(f"--arch-arg {each!r} is not key=value", "for example --arch-arg width=32")
        try:
            arguments[key] = ast.literal_eval(value)
        except _NO_LITERAL:
            arguments[key] = value
    return str(Spec(spec.family, spec.name, spec.arguments | arguments))


def absolute(arch: str) -> str:
    """`arch` with its file's path made absolute, so that it means the same from another folder."""
    spec = parse(arch)
    return str(replace(spec, family=str(Path(spec.family).resolve()))) if spec.family.endswith(".py") else arch


def is_foreign(arch: str) -> bool:
    """Whether building `arch` runs code that is neither ours nor an installed model library's."""
    return parse(arch).family not in ("", "torchvision", "timm")


def build(arch: str, classes: int, input_shape: Shape) -> nn.Module:
    """A freshly initialised network with `classes` outputs for images of `input_shape`; `ArchError` where there is none."""
    network = _built(arch, classes, input_shape)
    check_numbers(network)
    return network


def _built(arch: str, classes: int, input_shape: Shape) -> nn.Module:
    spec = parse(arch)
    if not classes and not is_foreign(arch):
        raise ArchError(f"{arch} has to know how many outputs it has, and the data tell no classes apart", "say --classes N")
    if not spec.family:
        if spec.name not in ARCHS:
            raise ArchError(f"there is no network {arch!r}", suggest(spec.name, ARCHS))
        module_name, _, function = ARCHS[spec.name].builder.partition(":")
        builder = getattr(importlib.import_module(module_name), function)
        return _call(arch, lambda: builder(classes, input_shape, **spec.arguments))
    if spec.family == "torchvision":
        return _torchvision(spec, classes)
    if spec.family == "timm":
        return _timm(spec, classes, input_shape)
    builder = load_callable(spec.bare, spec.family, spec.name, ArchError)
    return _call(arch, lambda: builder(**spec.arguments))


def _call(arch: str, builder: Callable[[], Any]) -> nn.Module:
    try:
        network = builder()
    except Exception as error:
        lacks = isinstance(error, TypeError) and "required positional argument" in str(error)
        hint = "give it with --arch-arg NAME=VALUE" if lacks else "--debug shows where"
        raise ArchError(f"{arch} cannot be built: {type(error).__name__}: {error}", hint) from error
    if not isinstance(network, nn.Module):
        raise ArchError(f"{arch} returned a {type(network).__name__}", "it must return a torch.nn.Module")
    return network


def _torchvision(spec: Spec, classes: int) -> nn.Module:
    from torchvision import models

    name = spec.name
    known = models.list_models(module=models)  # classification only: the others fetch a backbone's weights when built
    if name not in known:
        raise ArchError(f"torchvision has no classification network {name!r}", suggest(name, known))
    return _call(str(spec), lambda: models.get_model(name, weights=None, **({"num_classes": classes} | spec.arguments)))


def _timm(spec: Spec, classes: int, input_shape: Shape) -> nn.Module:
    name = spec.name
    try:
        import timm
    except ImportError:
        raise ArchError(f"timm:{name} needs the package timm", "pip install 'slimcli[timm]'") from None
    if name not in timm.list_models():
        raise ArchError(f"timm has no network {name!r}", suggest(name, timm.list_models()))
    fetching = [key for key in spec.arguments if key.startswith(("pretrained", "checkpoint"))]
    if fetching:  # a name alone, which a file may hold, never makes timm fetch or unpickle another file
        raise ArchError(
            f"{spec}: {fetching[0]} would load weights from elsewhere", "leave it out: the checkpoint has the weights"
        )
    known = {"num_classes": classes, "in_chans": input_shape[0]}
    return _call(str(spec), lambda: timm.create_model(name, pretrained=False, **(known | spec.arguments)))


def normalisation(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the images that a library's published weights of this network want, where it knows them."""
    spec = parse(arch)
    if spec.family == "torchvision":
        from torchvision import models

        try:
            wanted = models.get_model_weights(spec.name).DEFAULT.transforms()
        except (ValueError, AttributeError):
            return None
    elif spec.family == "timm":
        try:
            import timm
        except ImportError:
            return None
        wanted = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    else:
        return None
    mean, std = getattr(wanted, "mean", None), getattr(wanted, "std", None)
    return (tuple(mean), tuple(std)) if mean and std else None
