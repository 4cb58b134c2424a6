"""`emberbox exec`: one piece of code in, its own output and exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from emberbox.cli.approve import terminal_approver
from emberbox.cli.exits import Exit, run_async
from emberbox.cli.inputs import language_of, read_input, with_hooks
from emberbox.cli.printing import printable
from emberbox.cli.progress import build_progress
from emberbox.config import load_settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ValidationFailed
from emberbox.models import Execution, TerminationReason, VmExecuteResponse
from emberbox.sandbox.work import Listeners, RunOptions


def execute_code(
    *,
    file: str | None,
    language: str | None,
    code: str | None,
    as_json: bool,
    timeout: float | None,
    template: str | None,
    hooks: Sequence[str] = (),
) -> None:
    """The command; leaves the process."""
    run_async(lambda: _execute(file, language, code, as_json, timeout, template, hooks), as_json=as_json)


async def _execute(
    file: str | None,
    language: str | None,
    code: str | None,
    as_json: bool,
    timeout: float | None,
    template: str | None,
    hooks: Sequence[str],
) -> int:
    settings = with_hooks(load_settings(), hooks)
    if (file is None) == (code is None):
        raise ValidationFailed(
            "Give either a file (or -) or --code.", remediation="emberbox exec -l python -c 'print(1)'"
        )
    language = language or language_of(file)
    source = code if code is not None else read_input(str(file), settings)
    async with Engine(settings, approver=terminal_approver(as_json=as_json, reads_stdin=file == "-")) as engine:
        with build_progress("image", Console(stderr=True)) as progress:
            sandbox = await engine.create_sandbox(template, progress=progress)
        request = ExecuteRequest(sandbox, language, source, RunOptions(timeout=timeout))
        listeners = Listeners() if as_json else Listeners(_out, _err)
        execution = await engine.execute(request, listeners)
    if as_json:
        print(VmExecuteResponse.of(execution).model_dump_json(indent=2))
    else:
        _epilogue(execution)
    if execution.termination_reason is TerminationReason.TIMEOUT:
        return int(Exit.TIMEOUT)
    return int(Exit.SUCCESS if execution.succeeded else Exit.FAILED)


def _out(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _err(text: str) -> None:
    sys.stderr.write(printable(text) if sys.stderr.isatty() else text)
    sys.stderr.flush()


def _epilogue(execution: Execution) -> None:
    """The last expression as an interpreter shows it, and what went wrong."""
    if execution.text is not None:
        _out(f"{execution.text}\n")
    if execution.error is not None:
        trace = execution.error.traceback or f"{execution.error.name}: {execution.error.value}"
        _err(trace.rstrip() + "\n")
    if execution.termination_reason not in (TerminationReason.COMPLETED, TerminationReason.INTERRUPTED):
        _err(f"emberbox: {execution.termination_reason.value} after {execution.duration_ms:.0f} ms\n")
    for note in execution.notes:
        _err(f"emberbox: {note}\n")
