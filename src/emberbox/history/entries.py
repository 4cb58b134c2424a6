"""How the entry of an execution changes on its way. Pure: no database."""

from __future__ import annotations

import secrets
from asyncio import CancelledError
from collections.abc import Sequence
from datetime import UTC, datetime

from emberbox.errors import PolicyBlocked, VmExecutionError
from emberbox.models import CommandHistoryEntry, DecisionRecord, Execution, TerminationReason

UNKNOWN = "Emberbox died while this was under way: how far it came, and what it printed, is unknown."
WITHHELD = "(withheld)"
_LONGEST = 1 << 18
"""Of refused code, which may be of any length; what runs is never longer than the settings allow, and kept whole."""


def new_execution_id() -> str:
    return f"ex-{secrets.token_hex(8)}"


def started(
    *, vm_id: str | None, agent_id: str, backend: str | None, language: str, code: str, parent_id: str | None = None
) -> CommandHistoryEntry:
    """An execution that is about to begin."""
    execution_id = new_execution_id()
    return CommandHistoryEntry(
        id=execution_id,
        execution_id=execution_id,
        parent_id=parent_id,
        vm_id=vm_id,
        agent_id=storable(agent_id),
        backend=backend,
        language=storable(language)[:100],
        command=storable(code if len(code) <= _LONGEST else f"{code[:_LONGEST]}\n… ({len(code)} characters)"),
        state="started",
        executed_at=datetime.now(UTC),
    )


def admitted(
    entry: CommandHistoryEntry, language: str, code: str, trail: Sequence[DecisionRecord] = ()
) -> CommandHistoryEntry:
    """Hooks and checks let it pass, perhaps changed: what is recorded is what runs."""
    update = {"language": language, "command": storable(code), "decisions": _stored(trail)}
    return entry.model_copy(update=update)


def refused(
    entry: CommandHistoryEntry, error: VmExecutionError, trail: Sequence[DecisionRecord] = ()
) -> CommandHistoryEntry:
    """It never ran."""
    words = storable(error.message)
    update = {"state": "refused", "blocked_by": rules_of(error), "error": words, "decisions": _stored(trail)}
    return entry.model_copy(update=update)


def passed(entry: CommandHistoryEntry, text: str, trail: Sequence[DecisionRecord]) -> CommandHistoryEntry:
    """A prompt or a model's answer, which hooks let pass, perhaps changed."""
    update = {"state": "finished", "success": True, "command": storable(text), "decisions": _stored(trail)}
    return entry.model_copy(update=update)


def finished(entry: CommandHistoryEntry, run: Execution, trail: Sequence[DecisionRecord] = ()) -> CommandHistoryEntry:
    """It ran, and this came of it."""
    error = None if run.error is None else storable(f"{run.error.name}: {run.error.value}")
    return _ran(entry, run).model_copy(
        update={
            "success": run.succeeded,
            "error": error,
            "stdout": storable(run.stdout),
            "stderr": storable(run.stderr),
            "decisions": _stored(trail),
        }
    )


def failed(
    entry: CommandHistoryEntry,
    error: BaseException,
    run: Execution | None = None,
    trail: Sequence[DecisionRecord] = (),
) -> CommandHistoryEntry:
    """It raised instead of giving an answer. When the code had run (`run`), a hook refused its answer: the output is
    withheld from the history too."""
    entry = entry.model_copy(update={"decisions": _stored(trail)})
    if run is not None:
        return _ran(entry, run).model_copy(
            update={"blocked_by": rules_of(error), "error": _words(error), "stdout": WITHHELD, "stderr": WITHHELD}
        )
    if isinstance(error, VmExecutionError):
        return entry.model_copy(update={"state": "finished", "blocked_by": error.code, "error": _words(error)})
    words = "The caller left; the code was killed." if isinstance(error, CancelledError) else _words(error)
    return entry.model_copy(
        update={"state": "finished", "error": words, "termination_reason": TerminationReason.KILLED}
    )


def unknown(entry: CommandHistoryEntry) -> CommandHistoryEntry:
    """Its Emberbox is gone, and it was never finished."""
    return entry.model_copy(
        update={"state": "unknown", "error": UNKNOWN, "termination_reason": TerminationReason.CRASHED}
    )


def _ran(entry: CommandHistoryEntry, run: Execution) -> CommandHistoryEntry:
    return entry.model_copy(
        update={
            "state": "finished",
            "backend": run.backend,
            "exit_code": run.exit_code,
            "termination_reason": run.termination_reason,
            "stdout_truncated": run.stdout_truncated,
            "stderr_truncated": run.stderr_truncated,
            "duration_ms": run.duration_ms,
            "memory_peak_mb": run.memory_peak_mb,
            "snapshot_before_id": run.snapshot_before,
            "snapshot_id": run.snapshot_after,
            "rolled_back_to": run.rolled_back_to or run.restored_from,
            "changed_files": run.changed_files,
        }
    )


def rules_of(error: BaseException) -> str:
    """Names of the rules that refused, or the code of the error."""
    if not isinstance(error, VmExecutionError):
        return type(error).__name__
    findings = error.details.get("findings", []) if isinstance(error, PolicyBlocked) else []
    rules = [finding["rule"] for finding in findings if isinstance(finding, dict) and "rule" in finding]
    hook = error.details.get("hook")
    return ", ".join(dict.fromkeys(rules)) or (f"hook {hook}" if hook else error.code)


def _stored(trail: Sequence[DecisionRecord]) -> list[DecisionRecord]:
    return [record.model_copy(update={"reason": storable(record.reason)}) for record in trail]


def _words(error: BaseException) -> str:
    return storable(error.message if isinstance(error, VmExecutionError) else f"{type(error).__name__}: {error}")


def storable(text: str) -> str:
    """Text that every database takes: no NUL, no halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
