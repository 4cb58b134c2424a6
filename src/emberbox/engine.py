"""The engine: one way for every execution, whatever entry it came by. Plain asyncio, no HTTP.

Steps of one execution (docs/architecture.md): 1 checks and hooks before, 2 lease of a sandbox, 3 a snapshot where the
policy asks for one, 4 the run, 5 hooks after, 6 the record, 7 a rollback where the policy asks for one. Steps 3 and 7
have no policy yet that asks for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from emberbox.code_extractor import CodeBlockExtractor
from emberbox.config import Settings, load_settings
from emberbox.errors import (
    ForkFailed,
    HistoryError,
    ImageError,
    UnsupportedLanguage,
    ValidationFailed,
    VmExecutionError,
    VmNotAvailable,
)
from emberbox.history import entries
from emberbox.history.lineage import Lineage
from emberbox.history.recorder import HistoryRecorder
from emberbox.images.builder import Progress, ensure_image, no_progress
from emberbox.images.requirements import check_requirements
from emberbox.images.store import Image, ImageStore
from emberbox.images.template import load_template
from emberbox.languages import get_language
from emberbox.machines.base import Capabilities, MachineFactory
from emberbox.machines.gvisor import GvisorFactory
from emberbox.models import (
    BlockError,
    CodeBlock,
    CommandHistoryEntry,
    Execution,
    Language,
    MachineLimits,
    ParseExecuteResponse,
    SnapshotInfo,
    VmExecuteResponse,
)
from emberbox.sandbox.manager import SandboxManager
from emberbox.sandbox.session import Session
from emberbox.sandbox.work import Listeners, RunOptions

BACKENDS: Mapping[str, Callable[[Settings], MachineFactory]] = {"gvisor": GvisorFactory}
"""Every back end, best first: `auto` takes the first that is usable."""


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    """One piece of code to run in one sandbox."""

    sandbox: Session
    language: str
    code: str
    options: RunOptions = field(default_factory=RunOptions)
    requirements: Sequence[str] = ()
    agent_id: str = "local"


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


class Engine:
    """Owns the back end and all sandboxes of this process. Use it as an async context manager, or `close()` it."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        hooks: Sequence[ExecutionHook] = (),
        recorders: Sequence[Recorder] = (),
    ) -> None:
        self.settings = settings or load_settings()
        self._hooks = tuple(hooks)
        history = self.settings.vm_execution.history
        self._history: HistoryRecorder | None = None
        if history.enabled:
            self._history = HistoryRecorder(history, self.settings.history_url, self.settings.state_dir)
        self._recorders = (*recorders, self._history) if self._history else tuple(recorders)
        self._lineage = Lineage()
        self._extractor = CodeBlockExtractor(self.settings.auto_execute_threshold, self.settings.vm_execution)
        self._factory: MachineFactory | None = None
        self._sandboxes: SandboxManager | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def extractor(self) -> CodeBlockExtractor:
        return self._extractor

    @property
    def history(self) -> HistoryRecorder:
        """What was executed; raises HistoryError where recording is switched off."""
        if self._history is None:
            raise HistoryError("The history is switched off.", remediation="Set vm_execution.history.enabled = true.")
        return self._history

    # --- back ends ------------------------------------------------------------------------------------------------

    def capabilities(self) -> list[Capabilities]:
        """What every back end says of this host."""
        return [make(self.settings).capabilities() for make in BACKENDS.values()]

    async def _open(self) -> SandboxManager:
        async with self._opening:
            if self._closed:
                raise VmNotAvailable("The engine is closed.", remediation="Make a new one.")
            if self._sandboxes is None:
                factory = await asyncio.to_thread(self._choose)
                await factory.sweep()
                self._factory = factory
                self._sandboxes = SandboxManager(
                    factory,
                    self.settings.boot_timeout_seconds,
                    self.settings.snapshot_dir or self.settings.cache_dir / "snapshots",
                    self.settings.max_snapshots,
                )
                await asyncio.to_thread(self._sandboxes.sweep)
            return self._sandboxes

    def _choose(self) -> MachineFactory:
        wanted = list(BACKENDS) if self.settings.backend == "auto" else [self.settings.backend]
        reasons = []
        for name in wanted:
            factory = BACKENDS[name](self.settings)
            found = factory.capabilities()
            if found.usable:
                return factory
            reasons.append(f"{name}: {found.why}. {found.remedy}")
        raise VmNotAvailable(
            "No back end is usable. " + " ".join(reasons), remediation="Run `emberbox setup`, then `emberbox doctor`."
        )

    # --- sandboxes ------------------------------------------------------------------------------------------------

    async def create_sandbox(
        self,
        template: str | None = None,
        *,
        limits: MachineLimits | None = None,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
        progress: Progress = no_progress,
    ) -> Session:
        """Start a sandbox from a template (built first, if need be and `auto_provision` allows it).

        Raises:
            VmNotAvailable: no usable back end, or the machine did not start.
            ImageError, ConfigError: the template is unknown, wrong or cannot be built.
        """
        if self._history is not None:
            self._history.prepare()
        image = await self.image(template, progress)
        limits = self._bounded(limits or image.limits)
        manager = await self._open()
        return await manager.create(image, limits, envs=envs, metadata=metadata, timeout=timeout)

    async def image(self, template: str | None = None, progress: Progress = no_progress) -> Image:
        """The image of a template (default: `default_vm_type` of the settings)."""
        found = load_template(template or self.settings.vm_execution.default_vm_type, self.settings)
        if self.settings.vm_execution.auto_provision:
            return await ensure_image(found, self.settings, progress)
        image = ImageStore(self.settings).find(found)
        if image is None:
            raise ImageError(
                f"The image of template {found.name!r} is not built.",
                remediation=f"Run `emberbox image build {found.name}`, or set auto_provision.",
            )
        return image

    def _bounded(self, limits: MachineLimits) -> MachineLimits:
        most = self.settings.vm_execution.security_settings.resource_limits.max_memory_mb
        if limits.memory_mb > most:
            raise ValidationFailed(
                f"memory_mb {limits.memory_mb} is above the limit of {most}.",
                remediation="Ask for less, or raise security_settings.resource_limits.max_memory_mb.",
            )
        return limits

    async def get_sandbox(self, sandbox_id: str) -> Session:
        """A live sandbox by id; raises SessionNotFound."""
        return (await self._open()).get(sandbox_id)

    async def list_sandboxes(self) -> list[Session]:
        return (await self._open()).sessions()

    # --- undo -----------------------------------------------------------------------------------------------------

    async def snapshot(self, sandbox: Session, name: str | None = None) -> SnapshotInfo:
        """Keep a sandbox as it is now: files, memory and processes. It goes on.

        Raises:
            SnapshotFailed: code is running in it, it has `max_snapshots` already, or the disk is full.
        """
        info = await (await self._open()).snapshot(sandbox, name)
        self._lineage.marked(sandbox, info.snapshot_id)
        return info

    async def list_snapshots(self, sandbox: Session) -> list[SnapshotInfo]:
        """Snapshots of a sandbox, oldest first."""
        return (await self._open()).snapshots(sandbox)

    async def delete_snapshot(self, sandbox: Session, snapshot_id: str) -> None:
        """Remove a snapshot; raises SnapshotNotFound."""
        (await self._open()).delete_snapshot(sandbox, snapshot_id)
        self._lineage.forgot(sandbox, snapshot_id)

    async def rollback(self, sandbox: Session, snapshot_id: str) -> None:
        """Take a sandbox back to a snapshot. What runs in it is killed.

        Raises:
            SnapshotNotFound: there is no such snapshot of this sandbox.
            RollbackFailed: nothing could be started from it; the sandbox is as it was.
        """
        await (await self._open()).rollback(sandbox, snapshot_id)
        self._lineage.went_back(sandbox, snapshot_id)

    async def branch(self, sandbox: Session, snapshot_id: str, *, timeout: float | None = None) -> Session:
        """A new sandbox that goes on from a snapshot of this one."""
        copy = await (await self._open()).branch(sandbox, snapshot_id, timeout)
        self._lineage.copied(sandbox, copy, snapshot_id)
        return copy

    async def fork(self, sandbox: Session, count: int = 1, *, timeout: float | None = None) -> list[Session]:
        """New sandboxes that go on from this moment, each with its own copy of memory, processes and files.

        Raises:
            SnapshotFailed: code is running in the sandbox.
            ForkFailed: some could not be started; it carries those that were.
        """
        if count < 1:
            raise ValidationFailed(f"count must be at least 1, not {count}.", remediation="Leave it out for one fork.")
        children = await (await self._open()).fork(sandbox, count, timeout)
        good = [child for child in children if isinstance(child, Session)]
        bad = [child for child in children if not isinstance(child, Session)]
        for child in good:
            self._lineage.copied(sandbox, child)
        if bad:
            raise ForkFailed(f"{len(bad)} of {count} forks of {sandbox.id} failed: {bad[0].message}", good, bad)
        return good

    async def close(self) -> None:
        """Kill every sandbox and the helper processes. The engine cannot be used again."""
        self._closed = True
        try:
            if self._sandboxes is not None:
                await self._sandboxes.close()
            if self._factory is not None:
                await self._factory.close()
        finally:
            self._sandboxes = self._factory = None
            if self._history is not None:
                await self._history.close()

    def abandon(self) -> None:
        """Let go of everything without an event loop, when that is closed already: the helpers then kill all
        sandboxes."""
        self._closed = True
        if self._factory is not None:
            self._factory.abandon()

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
            agent_id=request.agent_id,
            backend=request.sandbox.machine.backend,
            language=request.language,
            code=request.code,
            parent_id=self._lineage.last(request.sandbox),
        )
        try:
            request, language = await self._admitted(request)
        except VmExecutionError as exc:
            await self._record(entries.refused(entry, exc))
            raise
        entry = entries.admitted(entry, language, request.code)
        options = replace(request.options, execution_id=entry.execution_id)
        execution: Execution | None = None
        try:
            await self._record(entry)
            self._lineage.ran(request.sandbox, entry.execution_id)
            execution = await request.sandbox.run_code(language, request.code, options, listeners or Listeners())
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
        vm_id = None if session is None else session.id
        entry = entries.started(vm_id=vm_id, agent_id="local", backend=None, language=block.language, code=block.code)
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
