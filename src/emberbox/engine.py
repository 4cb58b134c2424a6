"""The engine: one way for every execution, whatever entry it came by. Plain asyncio, no HTTP.

Steps of one execution (docs/architecture.md): 1 checks and hooks before, 2 lease of a sandbox, 3 a snapshot where the
policy asks for one, 4 the run, 5 a snapshot or a rollback where the policy asks for one, 6 hooks after, 7 the record.
The machines and sandboxes are in `fleet`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.config import Settings
from emberbox.errors import (
    HistoryError,
    UnsupportedLanguage,
    ValidationFailed,
    VmExecutionError,
)
from emberbox.fleet import Fleet
from emberbox.history import entries
from emberbox.images.requirements import check_requirements
from emberbox.languages import get_language
from emberbox.models import (
    BlockError,
    CodeBlock,
    CommandHistoryEntry,
    Execution,
    Language,
    ParseExecuteResponse,
    VmExecuteResponse,
)
from emberbox.sandbox.session import Session
from emberbox.sandbox.work import Listeners, RunOptions


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """One piece of code to run in one sandbox."""

    sandbox: Session
    language: str
    code: str
    options: RunOptions = field(default_factory=RunOptions)
    requirements: Sequence[str] = ()
    agent_id: str | None = None
    """Who asks, for the history; None: the agent whose sandbox it is."""


class ExecutionHook(Protocol):
    """Policy around an execution. It may change what passes through, or raise PolicyBlocked."""

    async def pre_tool(self, request: ExecuteRequest) -> ExecuteRequest: ...
    async def post_tool(self, request: ExecuteRequest, execution: Execution) -> Execution: ...


class Recorder(Protocol):
    """Keeps what was done. Awaited with the entry of an execution when it was `refused`, or is `started` (before the
    code runs) and `finished` (before the answer is given). Where it raises, there is no run or no answer."""

    async def record(self, entry: CommandHistoryEntry) -> None: ...


class BlockListener(Protocol):
    """Hears of the blocks of an answer as they are run."""

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners: ...
    async def block_ran(self, index: int, execution: Execution) -> None: ...
    async def block_refused(self, index: int, error: VmExecutionError) -> None: ...


class Engine(Fleet):
    """Runs code in the sandboxes of this process, and owns these. Use it as an async context manager, or `close()` it.

    Args:
        settings: in force; read from file and environment by default.
        hooks: policy around each execution, in this order.
        recorders: told of each execution, beside the history.
        durable: sandboxes outlive this engine. `close()` puts them aside; the next durable engine of the same
            `state_dir` finds them again, also after a crash (`recovered` says how). One at a time.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        hooks: Sequence[ExecutionHook] = (),
        recorders: Sequence[Recorder] = (),
        durable: bool = False,
    ) -> None:
        super().__init__(settings, durable=durable)
        self._hooks = tuple(hooks)
        self._recorders = (*recorders, self._history) if self._history else tuple(recorders)
        self._extractor = CodeBlockExtractor(self.settings.auto_execute_threshold, self.settings.vm_execution)

    @property
    def extractor(self) -> CodeBlockExtractor:
        return self._extractor

    # --- executions -----------------------------------------------------------------------------------------------

    async def execute(self, request: ExecuteRequest, listeners: Listeners | None = None) -> Execution:
        """Run one piece of code. What the code does wrong is in the Execution; exceptions are for what never ran.

        Raises:
            ValidationFailed, UnsupportedLanguage, PolicyBlocked: refused before it ran.
            VmNotAvailable, SessionNotFound, ExecutionFailed: the sandbox could not run it.
            HistoryError: it could not be recorded; unless the message says that it ran, it did not.
        """
        entry = entries.started(
            vm_id=request.sandbox.id,
            agent_id=request.sandbox.agent_id if request.agent_id is None else request.agent_id,
            backend=request.sandbox.machine.backend,
            language=request.language,
            code=request.code,
            parent_id=request.sandbox.path[-1] if request.sandbox.path else None,
        )
        try:
            request, language = await self._admitted(request)
        except VmExecutionError as exc:
            await self._record(entries.refused(entry, exc))
            raise
        entry = entries.admitted(entry, language, request.code)
        track = self._history is not None and self.settings.vm_execution.history.track_files
        options = replace(request.options, execution_id=entry.execution_id, track_files=track)
        execution: Execution | None = None
        try:
            before, notes = await self.undo.before(request.sandbox)
            await self._record(entry.model_copy(update={"snapshot_before_id": before}))
            execution = await self._run(request.sandbox, language, request.code, options, listeners or Listeners())
            execution.notes += notes
            await self.undo.after(request.sandbox, execution, before)
            for hook in self._hooks:
                execution = await hook.post_tool(request, execution)
        except HistoryError:
            raise
        except BaseException as exc:
            with contextlib.suppress(HistoryError):  # the caller gets an error in any case
                await asyncio.shield(asyncio.ensure_future(self._record(entries.failed(entry, exc, execution))))
            raise
        await self._record(entries.finished(entry, execution))
        return execution

    async def _run(
        self, sandbox: Session, language: Language, code: str, options: RunOptions, listeners: Listeners
    ) -> Execution:
        """Run it; an execution that did not begin leaves no trace in the sandbox's past."""
        execution_id = options.execution_id or ""
        self.undo.began(sandbox, execution_id)
        try:
            return await sandbox.runner.run_code(language, code, options, listeners)
        except VmExecutionError:
            with contextlib.suppress(ValueError):
                sandbox.path.remove(execution_id)
            raise
        except BaseException:
            sandbox.good = False
            raise

    async def _admitted(self, request: ExecuteRequest) -> tuple[ExecuteRequest, Language]:
        """The request after hooks and checks; raises where it is refused."""
        language = self.runnable_language(request.language, request.sandbox)
        for hook in self._hooks:
            request = await hook.pre_tool(request)
        self._check(request, language)
        check_requirements(request.requirements, language, request.sandbox.image.manifest)
        timeout = self.timeout_for(language, request.options.timeout)
        return replace(request, options=replace(request.options, timeout=timeout)), language

    async def _record(self, entry: CommandHistoryEntry) -> None:
        for recorder in self._recorders:
            await recorder.record(entry)

    def _check(self, request: ExecuteRequest, language: Language) -> None:
        """The settings' own policy, after the hooks, so that what a hook wrote is checked as well. Syntax is left to
        the interpreter here: its message is better, and an SDK's user expects it as the execution's error."""
        size = len(request.code)
        block = CodeBlock(language=language, code=request.code, execution_confidence=1, start_pos=0, end_pos=size)
        self._extractor.validate_code(block, syntax=False)

    def runnable_language(self, name: str, sandbox: Session) -> Language:
        """The language behind a name or alias, if the settings and the sandbox's template have it."""
        language = get_language(name).config.name
        if language not in self.settings.vm_execution.allowed_languages:
            raise UnsupportedLanguage(
                f"{language} is not allowed here.", remediation="Add it to vm_execution.allowed_languages."
            )
        if language not in sandbox.image.template.languages:
            raise UnsupportedLanguage(
                f"Template {sandbox.image.name!r} has no {language}.",
                remediation=f"It has {', '.join(sandbox.image.template.languages)}; choose another template.",
            )
        return language

    def timeout_for(self, language: Language, seconds: float | None) -> float:
        """Seconds that code of this language may take: the given ones, or the default times the language's factor.

        Raises:
            ValidationFailed: not positive, or above `max_execution_time_seconds` (times the factor).
        """
        config = self.settings.vm_execution
        factor = get_language(language).config.timeout_multiplier
        if seconds is None:
            return config.execution_timeout_ms / 1000 * factor
        most = config.security_settings.resource_limits.max_execution_time_seconds * factor
        if not 0 < seconds <= most:
            raise ValidationFailed(
                f"A timeout of {seconds:g} s is not possible for {language}: more than 0 and at most {most:g} s.",
                remediation="Give another one, or raise security_settings.resource_limits.max_execution_time_seconds.",
            )
        return seconds

    async def run_answer(
        self,
        blocks: Sequence[CodeBlock],
        open_sandbox: Callable[[], Awaitable[Session]],
        *,
        threshold: float,
        timeout: float | None = None,
        listener: BlockListener | None = None,
    ) -> tuple[list[VmExecuteResponse], list[BlockError]]:
        """Run the blocks of an answer, in the order of the text, in one sandbox (state carries over per language).

        Blocks below `threshold` are left out. A block that fails or is refused does not stop the ones after it.
        `open_sandbox` is called once, for the first block that passes the checks: an answer that is refused as a whole
        needs no machine.
        """
        results: list[VmExecuteResponse] = []
        errors: list[BlockError] = []
        session: Session | None = None
        for index in sorted(range(len(blocks)), key=lambda i: blocks[i].start_pos):
            block = blocks[index]
            if block.execution_confidence < threshold:
                continue
            try:
                self._extractor.validate_code(block)
            except VmExecutionError as exc:
                await self._record_refusal(block, session, exc)
                errors.append(await _refused(index, exc, listener))
                continue
            session = session or await open_sandbox()
            try:
                listeners = await listener.block_begins(index, block) if listener else Listeners()
                request = ExecuteRequest(session, block.language, block.code, RunOptions(timeout=timeout))
                execution = await self.execute(request, listeners)
            except VmExecutionError as exc:
                errors.append(await _refused(index, exc, listener))
                continue
            results.append(VmExecuteResponse.of(execution))
            if listener:
                await listener.block_ran(index, execution)
        return results, errors

    async def _record_refusal(self, block: CodeBlock, session: Session | None, error: VmExecutionError) -> None:
        """Of a block that did not come as far as `execute`."""
        vm_id, agent_id = (None, "local") if session is None else (session.id, session.agent_id)
        entry = entries.started(vm_id=vm_id, agent_id=agent_id, backend=None, language=block.language, code=block.code)
        await self._record(entries.refused(entry, error))

    async def parse_execute(
        self, text: str, *, threshold: float | None = None, template: str | None = None, timeout: float | None = None
    ) -> ParseExecuteResponse:
        """Find the code in an LLM's answer and run what is meant to run, in a sandbox of its own."""
        blocks = self._extractor.extract_code_blocks(text)
        intent = self._extractor.detect_execution_intent(text)
        least = self.settings.auto_execute_threshold if threshold is None else threshold
        sessions: list[Session] = []

        async def open_sandbox() -> Session:
            sessions.append(await self.create_sandbox(template))
            return sessions[0]

        try:
            results, errors = await self.run_answer(blocks, open_sandbox, threshold=least, timeout=timeout)
        finally:
            for session in sessions:
                await session.kill()
        return ParseExecuteResponse(code_blocks=blocks, intent=intent, execution_results=results, errors=errors)


async def _refused(index: int, error: VmExecutionError, listener: BlockListener | None) -> BlockError:
    if listener:
        await listener.block_refused(index, error)
    return BlockError(block=index, code=error.code, message=error.message, remediation=error.remediation)
