"""What all settings have in common: to and from a recipe's table, and the checks of single values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from slimcli.errors import SettingsError, suggest


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that are checked when they are made."""

    @classmethod
    def from_recipe(cls, table: Mapping[str, Any]) -> Self:
        """Settings from a recipe's table; lists become tuples; an unknown key is refused with the nearest known one."""
        known = {field.name.rstrip("_"): field.name for field in fields(cls)}
        for key in table:
            if key not in known:
                raise SettingsError(f"the recipe's [{cls.table()}] has an unknown key {key!r}", suggest(key, known))
        missing = [key for key, name in known.items() if key not in table and _is_required(cls, name)]
        if missing:
            raise SettingsError(f"the recipe's [{cls.table()}] lacks {missing[0]!r}", "add it")
        values = {known[key]: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        hints = get_type_hints(cls)
        for name, value in values.items():
            if not _is_a(value, hints[name]):
                raise SettingsError(
                    f"the recipe's [{cls.table()}] has {name.rstrip('_')} = {value!r}, which is of another type",
                    f"it must be {_in_words(hints[name])}",
                )
        return cls(**values)

    def to_recipe(self) -> dict[str, Any]:
        """Every setting that has a value (TOML knows no null)."""
        return {key.rstrip("_"): value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def table(cls) -> str:
        """The recipe table's name."""
        return cls.__name__.removesuffix("Settings").lower()


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_is_a(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(_in_words(option) for option in get_args(hint) if option is not NoneType)
    if get_origin(hint) is tuple:
        return f"a list of {_in_words(get_args(hint)[0])}"
    return {int: "whole numbers", float: "numbers", str: "text", bool: "true or false"}[hint]


def _is_required(cls: type[Settings], name: str) -> bool:
    return name in cls.__annotations__ and not hasattr(cls, name)


def within(flag: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    """Raise `SettingsError` unless the value is finite and between the bounds, `low` itself included unless `open_low`."""
    if not (low < value if open_low else low <= value) or not value <= high or math.isinf(value):
        bounds = f"{'above' if open_low else 'at least'} {low:g} and " + ("finite" if math.isinf(high) else f"at most {high:g}")
        raise SettingsError(f"{flag} {value:g} is out of range", f"it must be {bounds}")


def at_least(flag: str, value: int, low: int) -> None:
    """Raise `SettingsError` for a value below `low`."""
    if value < low:
        raise SettingsError(f"{flag} {value} is out of range", f"it must be at least {low}")


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `SettingsError` for a value that is not known, with the nearest one that is."""
    if value not in known:
        raise SettingsError(f"{flag} {value!r} is not known", suggest(value, known))
