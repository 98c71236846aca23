"""`slim`. The one place that turns errors into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

import slimcli
from slimcli import processes
from slimcli.cli import bench, compare, doctor, evaluate, export, inspect, listing, prune, report, run, train, watch
from slimcli.errors import PeerError, SlimError, Terminated

app = typer.Typer(
    help="Takes a trained CNN and gives back a physically smaller one, ready to deploy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("prune")(prune.prune)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("watch")(watch.watch)
app.command("compare")(compare.compare)
app.command("eval")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("list")(listing.listing)
app.command("run")(run.run)


_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slim {slimcli.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Takes a trained CNN and gives back a physically smaller one, ready to deploy."""


def main(arguments: list[str] | None = None) -> None:
    """Run `slim` and exit: 0 done, 1 fell short, 2 wrong use or bad input, 130 interrupted, 143 terminated."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with contextlib.suppress(ValueError):  # only the main thread may set handlers; elsewhere the caller handles signals
        signal.signal(signal.SIGTERM, _terminate)
    processes.command = processes.command or [sys.executable, "-m", "slimcli", *arguments]
    sys.exit(_run(arguments))


_NO_NUMBER = re.compile(
    r"Invalid value for '(?P<flag>--[\w-]+)'.*: Input should be a valid (?P<kind>number|integer).*", re.DOTALL
)


def _said(message: str, arguments: list[str]) -> str:
    """The message; where it is a number's that is none, with what was typed."""
    if (found := _NO_NUMBER.match(message)) is None:
        return message
    flag, kind = found["flag"], {"number": "number", "integer": "whole number"}[found["kind"]]
    typed = next((each.partition("=")[2] for each in arguments if each.startswith(f"{flag}=")), None)
    if typed is None and flag in arguments[:-1]:
        typed = arguments[arguments.index(flag) + 1]
    return f"{flag} {typed!r} is no {kind}" if typed is not None else message


def _terminate(*_: object) -> None:
    raise Terminated


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, standalone_mode=False)
    except SlimError as error:
        if "--debug" in arguments and not isinstance(error, PeerError):
            traceback.print_exc()
        return _fail(arguments, type(error).__name__, error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        return _fail(arguments, "UsageError", _said(error.format_message(), arguments), _usage_hint(error), 2)
    except Terminated:
        return _fail(arguments, "Terminated", "terminated", "", 143)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except OSError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        code = 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else 2
        return _fail(arguments, type(error).__name__, str(error), "check the path, its rights and the space on the disk", code)
    except Exception as error:  # our own fault, or the machine's (memory): still one sentence, and the way to the traceback
        if "--debug" in arguments:
            traceback.print_exc()
        first_line = (str(error).splitlines() or [""])[0]
        return _fail(arguments, type(error).__name__, f"failed: {type(error).__name__}: {first_line}", "--debug shows where", 1)
    if result == _INTERRUPTED:  # typer turns Ctrl-C into this code
        return _fail(arguments, "Interrupted", "interrupted", "", _INTERRUPTED)
    return result if isinstance(result, int) else 0


def _usage_hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    page = f"see `{context.command_path} --help`" if context is not None else "see `slim --help`"
    extra = re.search(r"unexpected extra argument\S* \((.+)\)", error.format_message())
    if extra and all(part.isdecimal() for part in extra[1].split()):
        return f"lists are written with commas and without spaces, as --widths 4,5; {page}"
    return page


def _fail(arguments: list[str], kind: str, message: str, hint: str, code: int) -> int:
    if not processes.is_main():
        # Every process finds the same bad input: process 0 says it. What ends this one alone is said here.
        if code == 1:
            print(f"slim: process {processes.rank()}: {message}{f' ({hint})' if hint else ''}", file=sys.stderr)
        return code
    if "--json" in arguments:
        print(json.dumps({"error": {"type": kind, "message": message, "hint": hint}}))
    print(f"slim: {message}{f' ({hint})' if hint else ''}", file=sys.stderr)
    return code
