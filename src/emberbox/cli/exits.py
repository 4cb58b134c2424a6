"""Exit codes, and how errors become messages."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from emberbox.cli.printing import printable
from emberbox.errors import (
    ApiError,
    ConfigError,
    HistoryError,
    ImageError,
    PolicyBlocked,
    SessionNotFound,
    SnapshotNotFound,
    ValidationFailed,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.models import BlockError, TerminationReason, VmExecuteResponse


class Exit(IntEnum):
    """What a script sees. Where several apply, the order of `worst` decides."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    BLOCKED = 3
    TIMEOUT = 4
    NO_BACKEND = 5
    NOTHING_RUN = 6


_USAGE = (ApiError, ConfigError, HistoryError, SessionNotFound, SnapshotNotFound, ValidationFailed)


def exit_of_error(error: VmExecutionError) -> Exit:
    """The exit code of an error that ended a command."""
    if isinstance(error, PolicyBlocked):
        return Exit.BLOCKED
    if isinstance(error, VmNotAvailable | ImageError):
        return Exit.NO_BACKEND
    if isinstance(error, VmConnectionError) and error.retryable:
        return Exit.NO_BACKEND  # there is no server
    if isinstance(error, _USAGE):
        return Exit.USAGE
    return Exit.TIMEOUT if error.code == "timeout" else Exit.FAILED


def exit_of_run(results: list[VmExecuteResponse], errors: list[BlockError]) -> Exit:
    """The exit code of a run: nothing to run, else no back end, a time-out, a failure, a refusal, else success."""
    if not results and not errors:
        return Exit.NOTHING_RUN
    codes = {error.code for error in errors}
    if codes & {VmNotAvailable.code, ImageError.code}:
        return Exit.NO_BACKEND
    if any(result.termination_reason is TerminationReason.TIMEOUT for result in results):
        return Exit.TIMEOUT
    if any(not response_succeeded(result) for result in results) or codes - {PolicyBlocked.code}:
        return Exit.FAILED
    return Exit.BLOCKED if codes else Exit.SUCCESS


def response_succeeded(result: VmExecuteResponse) -> bool:
    """Exit code 0, no error, not cut short."""
    harmless = (TerminationReason.COMPLETED, TerminationReason.OUTPUT_TRUNCATED)
    return result.exit_code == 0 and result.error is None and result.termination_reason in harmless


def fail(error: VmExecutionError, *, as_json: bool) -> NoReturn:
    """Say what went wrong and what to do, and leave."""
    if as_json:
        print(json.dumps({"error": error.to_dict()}, indent=2))
    else:
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]✗[/] {escape(printable(error.message))}")
        console.print(f"  [cyan]→[/] {escape(printable(error.remediation))}")
    sys.exit(int(exit_of_error(error)))


async def _collecting(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Do it, with Python's collection of garbage switched on once the start is over."""
    asyncio.get_running_loop().call_later(_START_SECONDS, gc.enable)
    try:
        return await work()
    finally:
        gc.enable()


_START_SECONDS = 2.0
_OUTPUT = "Is there space where the output goes?"


def run_async(work: Callable[[], Coroutine[Any, Any, int]], *, as_json: bool) -> NoReturn:
    """Run a command's coroutine and leave with its code; errors and Ctrl-C become messages."""
    try:
        sys.exit(asyncio.run(_collecting(work)))
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    except BrokenPipeError:
        # whoever read our output has gone; nothing more is to be written, at the exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        fail(ConfigError(f"Cannot write the output: {error.strerror or error}.", remediation=_OUTPUT), as_json=False)
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]interrupted[/]")
        sys.exit(130)
