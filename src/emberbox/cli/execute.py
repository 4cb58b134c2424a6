"""`emberbox exec`: one piece of code in, its own output and exit status out."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from emberbox.cli.exits import Exit, run_async
from emberbox.cli.inputs import read_input
from emberbox.cli.progress import build_progress
from emberbox.cli.run import printable
from emberbox.config import load_settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import UnsupportedLanguage, ValidationFailed
from emberbox.languages import LANGUAGES
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
) -> None:
    """The command; leaves the process."""
    run_async(lambda: _execute(file, language, code, as_json, timeout, template), as_json=as_json)


async def _execute(
    file: str | None, language: str | None, code: str | None, as_json: bool, timeout: float | None, template: str | None
) -> int:
    settings = load_settings()
    if (file is None) == (code is None):
        raise ValidationFailed(
            "Give either a file (or -) or --code.", remediation="emberbox exec -l python -c 'print(1)'"
        )
    language = language or _language_of(file)
    source = code if code is not None else read_input(str(file), settings)
    async with Engine(settings) as engine:
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


def _language_of(file: str | None) -> str:
    suffix = Path(file or "").suffix
    for name, spec in LANGUAGES.items():
        if suffix and spec.config.file_extension == suffix:
            return name
    raise UnsupportedLanguage(
        f"The language of {file or 'the code'} is not clear.", remediation="Name it: --language python"
    )


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
