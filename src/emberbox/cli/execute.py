"""`emberbox exec`: one piece of code in, its own output and exit status out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from emberbox.cli.approve import terminal_approver
from emberbox.cli.exits import Exit, run_async
from emberbox.cli.inputs import language_of, read_input, read_piped, with_hooks
from emberbox.cli.printing import write_output
from emberbox.cli.progress import build_progress
from emberbox.config import load_settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ValidationFailed
from emberbox.models import Execution, TerminationReason, VmExecuteResponse
from emberbox.sandbox.listeners import Listeners, RunOptions


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """What to run, and how. Of `file` and `code` one is given."""

    file: str | None = None
    args: Sequence[str] = ()
    language: str | None = None
    code: str | None = None
    as_json: bool = False
    timeout: float | None = None
    template: str | None = None
    hooks: Sequence[str] = ()
    yes: bool = False


def execute_code(options: ExecOptions) -> None:
    """The command; leaves the process."""
    run_async(lambda: _execute(options), as_json=options.as_json)


async def _execute(options: ExecOptions) -> int:
    settings = with_hooks(load_settings(), options.hooks)
    file, as_json = options.file, options.as_json
    if file is None and options.code is None:
        raise ValidationFailed(
            "Give either a file (or -) or --code.", remediation="emberbox exec -l python -c 'print(1)'"
        )
    language = options.language or language_of(file)
    source = options.code if options.code is not None else read_input(str(file), settings)
    stdin = b"" if file == "-" else read_piped(settings)
    approver = terminal_approver(as_json=as_json, reads_stdin=file == "-", yes=options.yes)
    async with Engine(settings, approver=approver) as engine:
        with build_progress("image", Console(stderr=True)) as progress:
            sandbox = await engine.create_sandbox(options.template, progress=progress)
        how = RunOptions(timeout=options.timeout, args=options.args, stdin=stdin)
        request = ExecuteRequest(sandbox, language, source, how)
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
    write_output(text, sys.stdout)


def _err(text: str) -> None:
    write_output(text, sys.stderr)


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
