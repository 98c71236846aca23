"""What was typed, read: from the text of an option to the value that a command hands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, overload

import typer

from slimcli.errors import SettingsError
from slimcli.settings import AUTO, DataSettings, ExportSettings, Int8Settings, PruneSettings, TrainSettings

S = TypeVar("S", DataSettings, TrainSettings, PruneSettings, ExportSettings, Int8Settings)


def numbers(text: str | None, flag: str, kind: type[int] | type[float], example: str = "4,5") -> tuple[Any, ...] | None:
    """`"4,5"` as (4, 5); None stays None. Raises `SettingsError` for anything that is no list of numbers."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"{flag} {text!r} is no list of numbers", f"write them with commas, for example {flag} {example}"
        ) from None


def fraction_of(flag: str) -> Callable[[str], float]:
    """What reads `"0.25"` and `"25%"` as 0.25, and raises `SettingsError` for anything that is neither."""

    def fraction(text: str) -> float:
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            raise SettingsError(f"{flag} {text!r} is no fraction", "give the part to keep: 0.25, or 25%") from None

    return fraction


def shape(text: str | None) -> tuple[int, ...] | None:
    """`"3,32,32"` as (3, 32, 32); None stays None."""
    sides = numbers(text, "--input-shape", int, "3,32,32")
    if sides is None:
        return None
    if not 2 <= len(sides) <= 4 or min(sides) < 1:
        raise SettingsError(
            f"--input-shape {text!r} is no shape of an image",
            "give channels, height, width: 3,32,32 (a signal has channels and length, a volume one number more)",
        )
    return sides


def settings(kind: type[S], flags: Mapping[str, Any]) -> S:
    """The settings in a command's own arguments (its `locals()`): each flag is named as its setting is."""
    chosen = {field.name: flags[field.name] for field in fields(kind) if field.name in flags}
    for name, number in (("mean", float), ("std", float), ("widths", int), ("pq", float)):
        if name in chosen:
            chosen[name] = numbers(chosen[name], f"--{name}", number)
    if chosen.get("round_to") not in (None, AUTO):
        chosen["round_to"] = numbers(chosen["round_to"], "--round-to", int)
    for name in ("history", "include", "exclude", "leave_out", "keep_float"):
        if chosen.get(name):
            chosen[name] = tuple(chosen[name])
    return kind(**chosen)


@overload
def arch_of(arch: str, arguments: Sequence[str] | None) -> str: ...
@overload
def arch_of(arch: str | None, arguments: Sequence[str] | None) -> str | None: ...
def arch_of(arch: str | None, arguments: Sequence[str] | None) -> str | None:
    """The arch with the arguments of `--arch-arg`."""
    if not arguments:
        return arch
    if arch is None:
        raise SettingsError("--arch-arg goes with the network that it is for", "name that with --arch")
    from slimcli.networks import resolve

    return resolve.with_arguments(arch, arguments)


def given(context: typer.Context) -> dict[str, Any]:
    """The settings that were typed on the command line, by name: what a run that goes on is told anew."""
    no_settings = {"resume", "json", "debug"}
    sources = {name: context.get_parameter_source(name) for name in context.params if name not in no_settings}
    return {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def started(what: str | None, metavar: str, command: str) -> str:
    """The argument that a new run needs; `SettingsError` where it is missing."""
    if what is None:
        raise SettingsError(f"slim {command} needs {metavar}, or --resume RUN", f"see `slim {command} --help`")
    return what
