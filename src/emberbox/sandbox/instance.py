"""One sandbox in use: a machine, its agent, and what may be asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from emberbox.errors import (
    ExecutionFailed,
    ExecutionTimeout,
    RollbackFailed,
    ValidationFailed,
    VmConnectionError,
    VmNotAvailable,
)
from emberbox.guest.protocol import PROTOCOL_VERSION, Header
from emberbox.images.store import Image
from emberbox.machines.channel import Channel
from emberbox.machines.contract import Death, Machine, Snapshot
from emberbox.models import MachineLimits, Recovery, SandboxInfo, SandboxMetrics, TerminationReason
from emberbox.sandbox.configuration import GUEST_HOME, configuration
from emberbox.sandbox.contexts import GuestContexts, GuestProcesses
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.files import GuestFiles
from emberbox.sandbox.idle_stop import IdleStopper
from emberbox.sandbox.lineage import Lineage, Restoration, SnapshotPoint
from emberbox.sandbox.log import warn
from emberbox.sandbox.options import SandboxOptions
from emberbox.sandbox.pool.pool import MachinePool
from emberbox.sandbox.runner import Runner
from emberbox.sandbox.snapshots.checkpoint import checkpoint, discard
from emberbox.sandbox.work import ANSWER_SECONDS, nonsense

_FIRST_ANSWER_SECONDS = 2.0
_LONGEST_SECONDS = 1e9
_REBUILD = "Build the image again: `emberbox image build NAME --force`."


class SandboxState(StrEnum):
    STARTING = "starting"
    READY = "running"
    PAUSED = "paused"
    RESTORING = "restoring"
    CLOSED = "killed"


class InstanceEvents(Protocol):
    """What a sandbox tells its maker."""

    def closed(self, instance: SandboxInstance) -> None:
        """It has ended."""

    async def died(self, instance: SandboxInstance, death: Death) -> bool:
        """Its machine died by itself: give it another one. False: there is none to give."""

    def changed(self, instance: SandboxInstance) -> None:
        """What is to be found again after a restart has changed."""


class SandboxInstance:
    """A sandbox. Made by a `Starter`, which is told of its events.

    Its attributes are its own: whoever has one reads them, and calls a method where something has happened to it.
    """

    def __init__(
        self,
        machine: Machine,
        image: Image,
        limits: MachineLimits,
        options: SandboxOptions,
        events: InstanceEvents,
        *,
        orphan_grace_seconds: float = 0,
    ) -> None:
        self.id = options.sandbox_id
        self.agent_id = options.agent_id
        self.durable = options.durable
        self._orphan_grace_seconds = orphan_grace_seconds
        self.own = options.own
        self.idle_seconds = options.idle_seconds
        self.last_used = asyncio.get_running_loop().time()
        self.recovered: Recovery | None = None
        self.attachments: dict[str, Any] = {}
        """What rooms above keep with it."""
        self.suspended = False
        """Its sandbox goes on without it."""
        self.machine = machine
        self.image = image
        self.limits = limits
        self.envs = dict(options.envs)
        self.metadata = dict(options.metadata)
        self.state = SandboxState.STARTING
        self.started_at = datetime.now(UTC)
        self.end_at: datetime | None = None
        self.files = GuestFiles(self)
        self.runner = Runner(self)
        self.contexts = GuestContexts(self, image.template.workdir)
        self.processes = GuestProcesses(self, self.runner.signal)
        self.lineage = Lineage.going_on_from(options.origin)
        self._events = events
        self._settled = asyncio.Event()
        self._settled.set()
        self._expiry: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Future[Any] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._death: Death | None = None
        self._closing = False
        self._replaced: asyncio.Future[Death] | None = None
        """The end of the machine before this one."""
        self._changing = asyncio.Lock()
        """Held while the machine is copied, replaced, stopped or let go on."""

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self, deadline: float) -> None:
        """Wait for the agent and configure it.

        Raises:
            ExecutionTimeout: no hello within `deadline` seconds.
            VmNotAvailable: the machine died, or its agent speaks another protocol.
        """
        try:
            async with asyncio.timeout(deadline):
                hello = await asyncio.shield(self.machine.channel.hello)
                if hello.get("protocol") != PROTOCOL_VERSION:
                    raise VmNotAvailable("The guest agent speaks another protocol version.", remediation=_REBUILD)
                await self.machine.channel.call("configure", timeout=deadline, **configuration(self.image, self.limits))
                if self.image.manifest.has_skeleton:
                    await self._copy_skeleton()
        except TimeoutError as exc:
            raise ExecutionTimeout(
                f"The agent of {self.id} did not answer within {deadline:g} s.", retryable=True
            ) from exc
        except VmConnectionError as exc:
            raise await self.died_early() from exc
        self._ready()

    async def died_early(self) -> VmNotAvailable:
        """The error for a machine whose channel ended before it was ready."""
        death = await self.machine.wait()
        return VmNotAvailable(f"Sandbox {self.id} died while it started: {death.message}.", retryable=True)

    async def start_copy(self, deadline: float) -> None:
        """Wake the agent of a machine that was forked from a snapshot.

        Raises:
            VmNotAvailable, ExecutionTimeout: it does not go on.
        """
        await self._wake_copy(self.machine, deadline, self.envs)
        self._ready()

    async def start_adopted(self, deadline: float) -> None:
        """Go on with a machine that another process left; what that one had asked of it is not heard of any more.

        Raises:
            VmNotAvailable, ExecutionTimeout: it does not answer.
        """
        try:
            await self._wake_copy(self.machine, min(deadline, _FIRST_ANSWER_SECONDS))
        except ExecutionTimeout:
            # half a request may be in its pipe, which would swallow what comes after it
            self.machine.channel.resync(self.machine.channel.last_request, pad=True)
            await self._wake_copy(self.machine, deadline)
        self._ready()

    def start_leased(self) -> None:
        """Begin with a machine that the pool has woken with this sandbox's environment."""
        self._ready()

    async def add_environment(self) -> None:
        """Give a machine that was booted what a copy gets when it wakes: this sandbox's own environment."""
        await self._wake_copy(self.machine, ANSWER_SECONDS, self.envs)

    @staticmethod
    async def _wake_copy(machine: Machine, deadline: float, envs: Mapping[str, str] | None = None) -> None:
        try:
            await machine.channel.call("wake", timeout=deadline, fork=True, env=dict(envs or {}))
        except VmConnectionError as exc:
            death = await machine.wait()
            raise VmNotAvailable(f"A copy of a sandbox died at its start: {death.message}.", retryable=True) from exc

    def _ready(self) -> None:
        self.state = SandboxState.READY
        machine = self.machine
        self.idle_stopper = IdleStopper(
            machine,
            lambda: machine is self.machine and self.state is SandboxState.READY and not self._changing.locked(),
        )
        self._watcher = self.spawn(self._watch(machine, self.idle_stopper))

    async def _copy_skeleton(self) -> None:
        copied = await self.runner.exec(["cp", "-R", "/opt/emberbox/skel/.", GUEST_HOME], timeout=60)
        if copied.exit_code != 0:
            raise VmNotAvailable(f"Cannot copy the template's files: {copied.stderr[:500]}", remediation=_REBUILD)

    async def _watch(self, machine: Machine, resting: IdleStopper) -> None:
        rests = asyncio.ensure_future(resting.run())
        try:
            death = await machine.wait()
        finally:
            rests.cancel()
        if machine is not self.machine:
            return  # a rollback has replaced it
        self._death = death
        if not self._closing and self.state is not SandboxState.CLOSED:
            self.state = SandboxState.RESTORING
            self._settled.clear()
            try:
                if await self._events.died(self, death):
                    return
            except Exception as exc:  # noqa: BLE001 (whatever it is, it has no machine any more)
                warn("sandbox could not go on", exc, sandbox=self.id)
            finally:
                self._settled.set()
        self._closed()

    async def settled(self) -> None:
        """Wait until it is decided whether a sandbox whose machine died goes on."""
        if self._watcher is not None and self.machine.channel.closed is not None and not self._closing:
            await asyncio.wait([self._watcher], timeout=ANSWER_SECONDS)
        await self._settled.wait()

    def set_timeout(self, seconds: float | None) -> None:
        """Kill the sandbox after this many seconds from now; None: never."""
        if seconds is not None and not 0 < seconds <= _LONGEST_SECONDS:
            raise ValidationFailed(
                f"A sandbox's timeout must be positive and at most {_LONGEST_SECONDS:g} s, not {seconds:g}.",
                remediation="Use kill() to end it now, None for never.",
            )
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = self.end_at = None
        if seconds is not None:
            self.end_at = datetime.now(UTC) + timedelta(seconds=seconds)
            death = Death(TerminationReason.TIMEOUT, f"the sandbox's own time of {seconds:g} s was over")
            self._expiry = asyncio.get_running_loop().call_later(seconds, lambda: self.spawn(self.kill(death)))
        self.changed()

    def used(self, now: float) -> None:
        """Note that it is in use at a time of the loop's clock: its idle time begins anew."""
        self.last_used = now

    async def suspend(self) -> None:
        """End the machine; the sandbox goes on without it, from its last snapshot (see `Durability`)."""
        self.goes_on_without_machine()
        await self.kill(Death(TerminationReason.KILLED, "the sandbox was suspended"))

    def goes_on_without_machine(self) -> None:
        """Note that its end, which is about to come, is that of its machine alone."""
        self.suspended = True

    async def kill(self, death: Death | None = None) -> None:
        """End it; harmless when it has ended."""
        self._closing = True
        self._death = await self.machine.kill(death)
        await self._replaced_is_gone()
        self._closed()

    def _closed(self) -> None:
        if self.state is not SandboxState.CLOSED:
            self.state = SandboxState.CLOSED
            if self._expiry is not None:
                self._expiry.cancel()
            self._events.closed(self)

    def spawn(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        """Do it beside everything else."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def open_channel(self) -> Channel:
        """The channel of a live sandbox."""
        self.used(asyncio.get_running_loop().time())
        if self.state is SandboxState.PAUSED:
            raise ExecutionFailed(f"Sandbox {self.id} is paused.", remediation="Call resume() first.", retryable=True)
        if self.state is SandboxState.RESTORING:
            raise VmNotAvailable(
                f"The machine of sandbox {self.id} died; it is just going back to its last snapshot.",
                remediation="Try again in a moment.",
            )
        self.check_alive()
        if self.machine.channel.closed is not None:
            raise self._gone()
        return self.machine.channel

    @property
    def is_open(self) -> bool:
        """It has not ended, and is not about to."""
        return not self._closing and self.state is not SandboxState.CLOSED

    def check_alive(self) -> None:
        """Raise VmNotAvailable where it has ended, or is about to."""
        if not self.is_open:
            raise self._gone()

    def _gone(self) -> VmNotAvailable:
        why = f": {self._death.message}" if self._death else ""
        remedy = "Ask the engine for it again: get_sandbox() wakes it." if self.suspended else "Create a new one."
        return VmNotAvailable(f"Sandbox {self.id} is gone{why}.", remediation=remedy, retryable=True)

    # --- undo -----------------------------------------------------------------------------------------------------

    async def checkpoint(self, directory: Path, *, look: bool = False) -> tuple[Snapshot, SnapshotPoint]:
        """Write the machine into `directory`, between executions, and the moment at which that began: what changes
        during it changes the revision, and the snapshot is then one of before. Commands in the background go on.

        `look`: find out whether anything of the user's runs in it, for `Snapshot.idle`.

        When the caller is cancelled it goes on to its end, because the agent must not be left quiet, and is removed.

        Raises:
            SnapshotFailed: code is running, or the machine or the disk refused.
        """
        work = asyncio.ensure_future(self._checkpoint(directory, look=look))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # not awaited here: some frameworks cancel again at every await
            self.spawn(discard(work, directory))
            raise

    async def _checkpoint(self, directory: Path, *, look: bool) -> tuple[Snapshot, SnapshotPoint]:
        async with self._changing:  # a rollback that is under way ends first
            self.open_channel()  # raises where there is none
            moment, machine = self.lineage.moment, self.machine
            taken = await checkpoint(machine, self.image, self.limits, directory, sandbox_id=self.id, look=look)
            return taken, moment

    async def replace_machine(
        self, origin: Snapshot, pool: MachinePool, *, dead: Machine | None = None, beside: Awaitable[Any] | None = None
    ) -> bool:
        """Go on from a snapshot: a fork of it takes the machine's place, and the old one is being killed. The caller
        notes where the sandbox went back to before it awaits anything else.

        Args:
            origin: what to go on from.
            pool: forks the machine.
            dead: do it only if this is still the machine; False if it is not.
            beside: work with the old machine, awaited before that goes.

        Raises:
            RollbackFailed: no fork came up; the sandbox is as it was.
        """
        async with self._changing:
            self.check_alive()
            if dead is not None and self.machine is not dead:
                return False
            await self._replaced_is_gone()
            self.touched()
            try:
                machine = await pool.fork(origin)
                try:
                    await self._wake_copy(machine, ANSWER_SECONDS)
                    if beside is not None:
                        await beside
                    await self.survive_owner(machine)
                except BaseException:
                    await asyncio.shield(asyncio.ensure_future(machine.kill()))
                    raise
            except (VmNotAvailable, ExecutionTimeout) as exc:
                raise RollbackFailed(
                    f"Sandbox {self.id} could not be rolled back: {exc.message}",
                    remediation=exc.remediation,
                    retryable=exc.retryable or isinstance(exc, ExecutionTimeout),
                ) from exc
            if not self.is_open:  # killed, expired or dead meanwhile
                await asyncio.shield(asyncio.ensure_future(machine.kill()))
            self.check_alive()
            old, self.machine = self.machine, machine
            self._ready()
            # nobody need wait for it, which takes 8 ms; the factory's `close` does
            death = Death(TerminationReason.KILLED, "the sandbox was rolled back")
            self._replaced = asyncio.ensure_future(old.kill(death))
            return True

    async def survive_owner(self, machine: Machine) -> None:
        """Have a machine of its run on for a while when this process dies, where the sandbox outlives that."""
        if self.durable:
            await machine.survive_owner(self._orphan_grace_seconds)

    async def _replaced_is_gone(self) -> None:
        """Wait for the end of the machine that was replaced last, so that there is never more than one of these."""
        if self._replaced is not None:
            await asyncio.wait([self._replaced])
            self._replaced = None

    async def pause(self) -> None:
        """Stop everything in it; it keeps its memory and uses no CPU. Harmless when it is paused.

        Raises:
            ExecutionFailed: code is running, or a command with a time-out.
        """
        async with self._changing:
            if self.state is not SandboxState.PAUSED:
                self.open_channel()
                if self.runner.bounded:
                    raise ExecutionFailed(
                        f"Something with a time-out is running in sandbox {self.id}; its time would run out.",
                        remediation="Wait for it or interrupt it, then pause.",
                        retryable=True,
                    )
                self.state = SandboxState.PAUSED
                await self.machine.pause()

    async def resume(self) -> None:
        """Let it go on. Harmless when it runs."""
        async with self._changing:
            if self.state is SandboxState.PAUSED:
                await self.machine.resume()
                self.state = SandboxState.READY

    def changed(self) -> None:
        """Have what is to be found again after a restart written down, where this sandbox is."""
        self._events.changed(self)

    # --- its past -------------------------------------------------------------------------------------------------

    def began(self, execution_id: str, snapshot_id: str | None) -> None:
        """Note an execution that is about to begin, and the snapshot of the very state before it, if there is one."""
        self.lineage = self.lineage.began(execution_id, snapshot_id)

    def aborted(self, execution_id: str) -> None:
        """Note that an execution did not begin after all; it leaves no trace."""
        self.lineage = self.lineage.aborted(execution_id)

    def finished(self, execution_id: str, *, succeeded: bool) -> None:
        """Note how an execution ended."""
        if execution_id in self.lineage.executions:
            self.lineage = self.lineage.finished(execution_id, succeeded=succeeded)
            self.changed()

    def touched(self) -> None:
        """Note that its state is about to change: a snapshot of before is not one of now any more."""
        self.lineage = self.lineage.touched()

    def went_back_to(self, moment: SnapshotPoint) -> list[str]:
        """Note that a machine from a snapshot took the place of its own. The executions that this undid."""
        undone = self.lineage.undone_by(moment)
        self.lineage = self.lineage.went_back_to(moment)
        self.changed()
        return undone

    def restored(self, moment: SnapshotPoint, snapshot_id: str, death: Death) -> list[str]:
        """Note that it went back to a snapshot since its machine died. The executions that this undid."""
        undone = self.lineage.undone_by(moment)
        self.lineage = self.lineage.restored(moment, snapshot_id, death)
        self.changed()
        return undone

    def replaces(self, loss: Restoration) -> None:
        """Note that it took the place of one that was lost."""
        self.lineage = self.lineage.replaces(loss)

    def tell_restoration(self) -> Restoration | None:
        """What a caller who runs code is to be told of the death of its machine, once."""
        restoration, self.lineage = self.lineage.restoration, self.lineage.told()
        return restoration

    @property
    def ends(self) -> float | None:
        """When its own time is over, by the loop's clock; None: never."""
        return None if self._expiry is None else self._expiry.when()

    def found_again(self, record: SandboxRecord, recovery: Recovery, seconds: float | None) -> None:
        """Be the sandbox that was written down, by an earlier process or before it was suspended. `seconds`: what is
        left of its own time."""
        self.lineage = record.lineage()
        self.started_at, self.own, self.idle_seconds = record.started_at, record.own, record.idle_seconds
        self.recovered = recovery
        if seconds is not None:
            self.set_timeout(max(0.001, seconds))

    # --- figures --------------------------------------------------------------------------------------------------

    async def call(self, op: str, **fields: Any) -> Header:
        """One short request."""
        header, _ = await self.open_channel().call(op, timeout=ANSWER_SECONDS, **fields)
        return header

    async def metrics(self) -> SandboxMetrics:
        inside = await self.call("metrics")
        outside = self.machine.stats()
        with nonsense():
            return SandboxMetrics(
                memory_bytes=outside.memory_bytes,
                memory_peak_bytes=outside.memory_peak_bytes,
                memory_limit_bytes=self.limits.memory_mb << 20,
                cpu_seconds=outside.cpu_seconds,
                disk_used_bytes=inside["disk_used"],
                disk_total_bytes=inside["disk_total"],
                processes=inside["processes"],
            )

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            sandbox_id=self.id,
            template=self.image.name,
            backend=self.machine.backend,
            state=self.state.value,
            started_at=self.started_at,
            end_at=self.end_at,
            limits=self.limits,
            metadata=self.metadata,
            agent_id=self.agent_id,
            recovered=self.recovered,
        )
