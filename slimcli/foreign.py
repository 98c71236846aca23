"""Code that the user names on the command line: `path/file.py:callable` and `package.module:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimcli.errors import SlimError, suggest


def load_callable(spec: str, family: str, name: str, error: type[SlimError]) -> Callable[..., Any]:
    """The callable `name` of a file (`family` ends in .py) or of an importable module; raises `error` where there is none."""
    folder = str(Path(family).resolve().parent if family.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the user's code imports its neighbours, now or when it is called
    try:
        module = _import_file(Path(family)) if family.endswith(".py") else importlib.import_module(family)
    except FileNotFoundError:
        raise error(f"{spec}: there is no file {family}", "check the path before the colon") from None
    except Exception as cause:
        raise error(f"{spec} cannot be imported: {type(cause).__name__}: {cause}", "--debug shows where") from cause
    found = getattr(module, name, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(f"{family} has no callable {name!r}", suggest(name, names or ["(none)"]))
    return found  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(f"slimcli_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling in the user's file look their module up
    spec.loader.exec_module(module)
    return module
