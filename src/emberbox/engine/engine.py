"""The engine: one way for every execution, whatever entry it came by. Plain asyncio, no HTTP.

Steps of one execution (docs/architecture.md): 1 checks and hooks before, 2 lease of a sandbox, 3 a snapshot where the
policy asks for one, 4 the run, 5 a snapshot or a rollback where the policy asks for one, 6 hooks after, 7 the record.
The machines and sandboxes are in `resources`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from emberbox._text import check_environment, check_texts
from emberbox.code_extractor import CodeBlockExtractor
from emberbox.config import Settings
from emberbox.engine.answer_files import AnswerFiles
from emberbox.engine.guardrails import ExecutionSubject, Guardrails
from emberbox.engine.resources import EngineResources
from emberbox.errors import (
    HistoryError,
    UnsupportedLanguage,
    ValidationFailed,
    VmExecutionError,
)
from emberbox.history import entries
from emberbox.hooks.approval import Approver
from emberbox.hooks.contract import Hook, PostLlmContext, PreLlmContext
from emberbox.hooks.loading import manager_of
from emberbox.hooks.manager import HookManager
from emberbox.images.requirements import check_requirements
from emberbox.languages import get_language, resolve
from emberbox.models import (
    BlockError,
    CodeBlock,
    CommandHistoryEntry,
    DecisionRecord,
    Execution,
    Language,
    ParseExecuteResponse,
    SnapshotStrategy,
    VmExecuteResponse,
)
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """One piece of code to run in one sandbox."""

    sandbox: SandboxInstance
    language: str
    code: str
    options: RunOptions = field(default_factory=RunOptions)
    requirements: Sequence[str] = ()
    agent_id: str | None = None
    """Who asks, for history and policy; None: the agent whose sandbox it is."""
    role: str | None = None
    """As what the agent asks, for the policy."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """For hooks."""
    snapshot: SnapshotStrategy = "none"
    """Which snapshot is wanted of this execution, beside what the history's policy asks for."""
    on_begin: Callable[[str], None] | None = None
    """Told the id of the execution, before hooks and people are asked."""
    on_run: Callable[[], None] | None = None
    """Told that the code is about to run: from here on it may have done something."""


C = TypeVar("C", PreLlmContext, PostLlmContext)


class Recorder(Protocol):
    """Keeps what was done. Awaited with the entry of an execution when it was `refused`, or is `started` (before the
    code runs) and `finished` (before the answer is given). Where it raises, there is no run or no answer."""

    async def record(self, entry: CommandHistoryEntry) -> None: ...


class BlockListener(Protocol):
    """Hears of the blocks of an answer as they are run."""

    async def block_begins(self, index: int, block: CodeBlock) -> Listeners: ...
    async def block_ran(self, index: int, execution: Execution) -> None: ...
    async def block_refused(self, index: int, error: VmExecutionError) -> None: ...


class Engine(EngineResources):
    """Runs code in the sandboxes of this process, and owns these. Use it as an async context manager, or `close()` it.

    Args:
        settings: in force; read from file and environment by default.
        hooks: policy around each execution: a manager, used as it is, or hooks, which run after those that the settings
            name.
        approver: asks a person where a hook or a rule wants it; without one that counts as no.
        recorders: told of each execution, beside the history.
        durable: sandboxes outlive this engine. `close()` suspends them; the next durable engine of the same
            `state_dir` finds them again, also after a crash (`recovered` says how). One at a time.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        hooks: HookManager | Iterable[Hook] = (),
        approver: Approver | None = None,
        recorders: Sequence[Recorder] = (),
        durable: bool = False,
    ) -> None:
        super().__init__(settings, durable=durable)
        self._recorders = (*recorders, self._history) if self._history else tuple(recorders)
        self._extractor = CodeBlockExtractor(self.settings.auto_execute_threshold, self.settings.vm_execution)
        self._guardrails = Guardrails(self._manager(hooks, approver), self._extractor)

    def _manager(self, hooks: HookManager | Iterable[Hook], approver: Approver | None) -> HookManager:
        if isinstance(hooks, HookManager):
            hooks.approver = approver or hooks.approver
            return hooks
        settings = self.settings
        manager = manager_of(settings.hooks, settings.vm_execution, self._extractor.policy, approver=approver)
        for hook in hooks:
            manager.add_hook(hook)
        return manager

    @property
    def hooks(self) -> HookManager:
        """The hooks in force."""
        return self._guardrails.hooks

    @property
    def extractor(self) -> CodeBlockExtractor:
        return self._extractor

    # --- executions -----------------------------------------------------------------------------------------------

    async def execute(self, request: ExecuteRequest, listeners: Listeners | None = None) -> Execution:
        """Run one piece of code. What the code does wrong is in the Execution; exceptions are for what never ran.

        Raises:
            ValidationFailed, UnsupportedLanguage, PolicyBlocked: refused before it ran.
            VmNotAvailable, SessionNotFound, ExecutionFailed: the sandbox could not run it.
            HistoryError: it could not be recorded; unless the message says that the code ran, it did not.
        """
        entry = entries.started(
            vm_id=request.sandbox.id,
            agent_id=request.sandbox.agent_id if request.agent_id is None else request.agent_id,
            backend=request.sandbox.machine.backend,
            language=request.language,
            code=request.code,
            parent_id=request.sandbox.lineage.newest,
        )
        if request.on_begin is not None:
            request.on_begin(entry.execution_id)
        subject = ExecutionSubject(
            agent_id=entry.agent_id,
            execution_id=entry.execution_id,
            vm_id=request.sandbox.id,
            template=request.sandbox.image.name,
            role=request.role,
            metadata=request.metadata,
        )
        decisions: list[DecisionRecord] = []
        try:
            request, language = await self._admitted(request, subject, decisions)
        except VmExecutionError as exc:
            await self._record(entries.refused(entry, exc, decisions))
            raise
        entry = entries.admitted(entry, language, request.code, decisions)
        track = self._history is not None and self.settings.vm_execution.history.track_files
        options = replace(request.options, execution_id=entry.execution_id, track_files=track)
        execution: Execution | None = None
        try:
            before, notes = await self.checkpoints.before(request.sandbox, request.snapshot)
            await self._record(entry.model_copy(update={"snapshot_before_id": before}))
            if request.on_run is not None:
                request.on_run()
            wanted = listeners or Listeners()
            async with self._guardrails.filtered(subject, language, request.code, wanted) as (heard, filters):
                execution = await self._run(request.sandbox, language, request.code, options, heard)
            execution.notes += notes
            await self.checkpoints.after(request.sandbox, execution, before, request.snapshot)
            execution = await self._guardrails.release(subject, request.code, execution, filters, decisions)
        except HistoryError:
            raise
        except BaseException as exc:
            with contextlib.suppress(HistoryError):  # the caller gets an error in any case
                ended = entries.failed(entry, exc, execution, decisions)
                await asyncio.shield(asyncio.ensure_future(self._record(ended)))
            raise
        await self._record_outcome(entries.finished(entry, execution, decisions))
        return execution

    async def _run(
        self, sandbox: SandboxInstance, language: Language, code: str, options: RunOptions, listeners: Listeners
    ) -> Execution:
        """Run it; an execution that did not begin leaves no trace in the sandbox's past."""
        execution_id = options.execution_id or ""
        self.checkpoints.began(sandbox, execution_id)
        try:
            return await sandbox.runner.run_code(language, code, options, listeners)
        except VmExecutionError:
            sandbox.aborted(execution_id)
            raise
        except BaseException:
            sandbox.finished(execution_id, succeeded=False)
            raise

    async def _admitted(
        self, request: ExecuteRequest, subject: ExecutionSubject, decisions: list[DecisionRecord]
    ) -> tuple[ExecuteRequest, Language]:
        """The request after hooks and checks; raises where it is refused."""
        options = request.options
        check_texts(code=request.code, cwd=options.cwd, args=options.args)
        check_environment(options.env)
        language = self.runnable_language(request.language, request.sandbox)
        code = await self._guardrails.admit(subject, language, request.code, decisions)
        check_requirements(request.requirements, language, request.sandbox.image.manifest)
        timeout = self.timeout_for(language, request.options.timeout)
        return replace(request, code=code, options=replace(request.options, timeout=timeout)), language

    async def _record_outcome(self, entry: CommandHistoryEntry) -> None:
        """Record what ran. Raises HistoryError, which says that it did: of all others nothing ran."""
        try:
            await self._record(entry)
        except HistoryError as exc:
            raise HistoryError(
                f"The code ran, and its outcome could not be recorded; its answer is withheld. {exc.message}",
                remediation=f"{exc.remediation} What it did is in the sandbox: look before you run it again.",
                retryable=False,
            ) from exc

    async def _record(self, entry: CommandHistoryEntry) -> None:
        for recorder in self._recorders:
            await recorder.record(entry)

    def runnable_language(self, name: str, sandbox: SandboxInstance) -> Language:
        """The language behind a name or alias, if the settings and the sandbox's template have it."""
        language = get_language(name).config.name
        if language not in self.settings.vm_execution.allowed_languages:
            raise UnsupportedLanguage(
                f"{language} is not allowed here.", remediation="Add it to vm_execution.allowed_languages."
            )
        if (language if language != "typescript" else "javascript") not in sandbox.image.template.languages:
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

    # --- models ---------------------------------------------------------------------------------------------------

    async def check_prompt(self, context: PreLlmContext) -> str:
        """The prompt to send to a model, after the hooks; every decision goes to the history.

        Raises:
            PolicyBlocked: a hook or a person refused it.
        """
        return await self._checked("prompt", context, context.prompt, self._guardrails.prompt)

    async def check_response(self, context: PostLlmContext) -> str:
        """The answer to take from a model, after the hooks; every decision goes to the history.

        Raises:
            PolicyBlocked: a hook or a person refused it.
        """
        return await self._checked("response", context, context.response, self._guardrails.answer)

    async def _checked(
        self, kind: str, context: C, text: str, check: Callable[[C, list[DecisionRecord]], Awaitable[str]]
    ) -> str:
        decisions: list[DecisionRecord] = []
        entry = entries.started(vm_id=context.vm_id, agent_id=context.agent_id, backend=None, language=kind, code=text)
        try:
            passed = await check(context, decisions)
        except VmExecutionError as exc:
            await self._record(entries.refused(entry, exc, decisions))
            raise
        if decisions:
            await self._record(entry)
            await self._record(entries.passed(entry, passed, decisions))
        return passed

    # --- answers --------------------------------------------------------------------------------------------------

    async def run_answer(
        self,
        blocks: Sequence[CodeBlock],
        open_sandbox: Callable[[], Awaitable[SandboxInstance]],
        *,
        threshold: float,
        timeout: float | None = None,
        listener: BlockListener | None = None,
        agent_id: str = "local",
        role: str | None = None,
        execute: Callable[[ExecuteRequest, Listeners], Awaitable[Execution]] | None = None,
    ) -> tuple[list[VmExecuteResponse], list[BlockError]]:
        """Run the blocks of an answer, in the order of the text, in one sandbox (state carries over per language).

        Blocks below `threshold` are left out. A block that fails or is refused does not stop the ones after it.
        `open_sandbox` is called once, for the first block that passes the checks: an answer that is refused as a whole
        needs no machine. What the text says to save under a name is written under that name, in the work directory,
        before anything runs, and again when its turn comes. `agent_id` and `role` say for whom the policy is asked.
        `execute` runs each block, if it is not this engine's own.
        """
        results: list[VmExecuteResponse] = []
        errors: list[BlockError] = []
        instance: SandboxInstance | None = None
        files = AnswerFiles(blocks, lambda block: self._may_be_written(block, agent_id, role))
        for index in sorted(range(len(blocks)), key=lambda i: blocks[i].start_pos):
            block = blocks[index]
            if block.execution_confidence < threshold:
                continue
            try:
                self._extractor.validate_code(block, agent_id=agent_id, role=role, asking=True)
            except VmExecutionError as exc:
                await self._record_refusal(block, instance, agent_id, exc)
                errors.append(await _refused(index, exc, listener))
                continue
            instance = instance or await open_sandbox()
            try:
                await files.write(instance.files, block)
                listeners = await listener.block_begins(index, block) if listener else Listeners()
                options = RunOptions(timeout=timeout)
                request = ExecuteRequest(instance, block.language, block.code, options, agent_id=agent_id, role=role)
                execution = await (execute or self.execute)(request, listeners)
            except VmExecutionError as exc:
                errors.append(await _refused(index, exc, listener))
                continue
            results.append(VmExecuteResponse.of(execution))
            if listener:
                await listener.block_ran(index, execution)
        return results, errors

    def _may_be_written(self, block: CodeBlock, agent_id: str, role: str | None) -> bool:
        """Whether a file of an answer may stand in the sandbox: what could be run there must pass as if it were run."""
        if resolve(block.language) is None:
            return True
        try:
            return not self._extractor.validate_code(block, syntax=False, agent_id=agent_id, role=role, asking=True)
        except VmExecutionError:
            return False

    async def _record_refusal(
        self, block: CodeBlock, instance: SandboxInstance | None, agent_id: str, error: VmExecutionError
    ) -> None:
        """Of a block that did not come as far as `execute`."""
        vm_id = None if instance is None else instance.id
        entry = entries.started(vm_id=vm_id, agent_id=agent_id, backend=None, language=block.language, code=block.code)
        await self._record(entries.refused(entry, error))

    async def parse_execute(
        self, text: str, *, threshold: float | None = None, template: str | None = None, timeout: float | None = None
    ) -> ParseExecuteResponse:
        """Find the code in an LLM's answer and run what is meant to run, in a sandbox of its own."""
        blocks, intent = await asyncio.to_thread(self._extractor.read, text)
        least = self.settings.auto_execute_threshold if threshold is None else threshold
        instances: list[SandboxInstance] = []

        async def open_sandbox() -> SandboxInstance:
            instances.append(await self.create_sandbox(template))
            return instances[0]

        try:
            results, errors = await self.run_answer(blocks, open_sandbox, threshold=least, timeout=timeout)
        finally:
            for instance in instances:
                await instance.kill()
        return ParseExecuteResponse(code_blocks=blocks, intent=intent, execution_results=results, errors=errors)


async def _refused(index: int, error: VmExecutionError, listener: BlockListener | None) -> BlockError:
    if listener:
        await listener.block_refused(index, error)
    return BlockError(block=index, code=error.code, message=error.message, remediation=error.remediation)
