"""The machines and sandboxes of one engine: which back end, which image, who has which sandbox, what outlives us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Self
from weakref import WeakValueDictionary

from emberbox._text import check_agent, check_environment, check_texts
from emberbox.config import Settings, load_settings
from emberbox.engine.checkpoints import Checkpoints
from emberbox.errors import HistoryError, ImageError, SessionNotFound, ValidationFailed, VmNotAvailable
from emberbox.history.recorder import HistoryRecorder
from emberbox.images.store import Image, ImageStore, Progress, no_progress
from emberbox.images.template import Template, load_template
from emberbox.machines.contract import Capabilities, MachineFactory
from emberbox.machines.microvm.processor import hardware_kvm
from emberbox.machines.probe_cache import is_proven, record_probe, was_probed
from emberbox.models import MachineLimits, PoolStatus, Recovery
from emberbox.models.configuration import LimitName
from emberbox.sandbox.durability.registry import SandboxRecord, SandboxRegistry
from emberbox.sandbox.idle_reaper import reap_idle
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.manager import SandboxManager
from emberbox.sandbox.pool.pool import PoolOptions
from emberbox.sandbox.snapshots.service import SnapshotQuota
from emberbox.sandbox.snapshots.store import SnapshotStore


def _firecracker(settings: Settings) -> MachineFactory:
    from emberbox.machines.firecracker import FirecrackerFactory

    return FirecrackerFactory(settings)


def _qemu(settings: Settings) -> MachineFactory:
    from emberbox.machines.qemu import QemuFactory

    return QemuFactory(settings)


def _gvisor(settings: Settings) -> MachineFactory:
    from emberbox.machines.gvisor import GvisorFactory

    return GvisorFactory(settings)


BACKENDS: Mapping[str, Callable[[Settings], MachineFactory]] = {
    "firecracker": _firecracker,
    "qemu": _qemu,
    "gvisor": _gvisor,
}
"""Every back end, imported when it is asked. `auto` takes the first that is usable, has hardware and was proven on this
host."""
_WANT_KVM = ("firecracker", "qemu")
"""What `auto` takes only where KVM has the processor's help: elsewhere it need not be asked."""


_FILES_SHARE = 0.85
"""Of a machine's memory that the agent lets be used (sandbox/configuration.py)."""
_PROGRAMS_MB = 64
"""Of that, what files must leave: the agent and a few interpreters."""


def _files_within(default: MachineLimits, memory_mb: float) -> dict[LimitName, int]:
    """The sizes of the home directory and of /tmp (and /dev/shm) in a machine that gets less memory than its template
    says: files are in memory, and are to leave programs enough of it."""
    if memory_mb >= default.memory_mb:
        return {}
    files = int(memory_mb * _FILES_SHARE) - _PROGRAMS_MB
    return {"disk_mb": max(8, min(default.disk_mb, files * 2 // 3)), "tmp_mb": max(8, min(default.tmp_mb, files // 6))}


def _too_much(name: str, asked: float, most: float, *, caller: bool = False) -> ValidationFailed:
    setting = f"vm_execution.security_settings.resource_limits.max_{name}"
    return ValidationFailed(
        f"{name} {asked:g} is above the limit of {most:g}."
        if isinstance(asked, float)
        else f"{name} {asked} is above the limit of {most}.",
        remediation=f"Ask for less, or {'get a token with a larger limit' if caller else f'raise {setting}'}.",
        details={"field": name, "asked": asked, "most": most},
    )


def _why_not(found: Capabilities) -> str:
    """Why a back end is not taken, and what to do."""
    if not found.usable:
        return f"{found.backend}: {found.why}. {found.remedy}"
    if found.for_tests:
        return f"{found.backend}: {found.why}; it is used where the settings say `backend = {found.backend}`."
    return f"{found.backend}: not tried on this host yet; `emberbox setup --backend {found.backend}` does."


class EngineResources:
    """The back end and all sandboxes of this process. Use it as an async context manager, or `close()` it.

    Args:
        settings: in force; read from file and environment by default.
        durable: sandboxes outlive this one. `close()` suspends them; the next durable one of the same `state_dir`
            finds them again, also after a crash (`recovered` says how). One at a time.
    """

    def __init__(self, settings: Settings | None = None, *, durable: bool = False) -> None:
        self.settings = settings or load_settings()
        history = self.settings.vm_execution.history
        self._history: HistoryRecorder | None = None
        if history.enabled:
            self._history = HistoryRecorder(history, self.settings.history_url, self.settings.state_dir)
        self._factory: MachineFactory | None = None
        self._sandboxes: SandboxManager | None = None
        self._checkpoints: Checkpoints | None = None
        self._opening: asyncio.Task[None] | None = None
        self._ledger = SandboxRegistry(self.settings.state_dir / "sandboxes") if durable else None
        self._leasing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._idle: asyncio.Task[None] | None = None
        self.recovered: list[Recovery] = []
        """What became of the sandboxes of the engine before this one."""
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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

    def record_probe(self) -> str | None:
        """Note that the back end in use works on this host, so that `auto` may take it from now on; what is to be said
        of that, or None where it changes nothing. Raises OSError: it cannot be noted."""
        found = None if self._factory is None else self._factory.capabilities()
        if self._factory is None or found is None or found.for_tests or is_proven(self.settings, self._factory):
            return None
        record_probe(self.settings, self._factory)
        return f"`backend = auto` takes {found.backend} on this host from now on" if found.unproven else None

    def probe_note(self) -> str | None:
        """Say that the back end in use is not what was last seen to work on this host; None: it is, or none was."""
        if self._factory is None or (before := was_probed(self.settings, self._factory.backend)) is None:
            return None
        now = self._factory.probed
        return None if now == before else f"last seen to work here: {before}; this is {now}"

    async def _open(self) -> SandboxManager:
        if self._sandboxes is None and not self._closed:
            # who asks may be cancelled; what has been found by then must not get lost: others, and close(), wait for it
            if self._opening is None or self._opening.done():  # the first time, or where it failed
                self._opening = asyncio.create_task(self._begin())
            await asyncio.shield(self._opening)
        if self._closed or self._sandboxes is None:
            raise VmNotAvailable("The engine is closed.", remediation="Make a new one.")
        return self._sandboxes

    async def _begin(self) -> None:
        """Choose a back end, and find what the engine before this one has left."""
        if self._ledger is not None:
            self._ledger.open()
        factory = await asyncio.to_thread(self._choose)
        left = await factory.adopt() if self._ledger is not None else {}
        await factory.sweep()
        self._factory = factory
        manager = SandboxManager(
            factory,
            self.settings.boot_timeout_seconds,
            self.settings.snapshot_dir or self.settings.cache_dir / "snapshots",
            self.kept_snapshots(),
            SnapshotQuota(
                self.settings.max_snapshots,
                self.settings.max_snapshot_mb_per_agent << 20,
                self.settings.max_sandboxes_per_agent,
            ),
            PoolOptions.of(self.settings),
            self._ledger,
            self.settings.adoption_seconds,
        )
        await asyncio.to_thread(manager.sweep)
        await asyncio.to_thread(manager.snapshots.store.sweep_copies)
        if manager.durability is not None:
            self.recovered = await manager.durability.recover(left)
        self._checkpoints = Checkpoints(
            manager.snapshots, manager.copies, self.settings.vm_execution.history, self._history
        )
        self._sandboxes = manager
        self._idle = asyncio.create_task(reap_idle(manager, self._idle_check()))

    def _idle_check(self) -> float:
        """Seconds between two looks for idle sandboxes."""
        return min(30.0, self.settings.session_idle_seconds / 4)

    def kept_snapshots(self) -> SnapshotStore:
        """The snapshots of `state_dir`, which outlive this process. To look at them starts nothing."""

        def identity() -> str:
            return (self._factory or self._choose()).identity

        return SnapshotStore(self.settings.state_dir / "snapshots", ImageStore(self.settings), identity)

    def _choose(self) -> MachineFactory:
        automatic = self.settings.backend == "auto"
        hopeless = _WANT_KVM if automatic and not hardware_kvm() else ()
        for name in BACKENDS if automatic else (self.settings.backend,):
            if name in hopeless:
                continue
            factory = BACKENDS[name](self.settings)
            found = factory.capabilities()
            if found.usable and not (automatic and (found.for_tests or found.unproven)):
                return factory
        asked = self.capabilities() if automatic else [found]
        raise VmNotAvailable(
            "No back end is usable. " + " ".join(_why_not(one) for one in asked),
            remediation="Run `emberbox setup`, then `emberbox doctor`.",
        )

    # --- sandboxes ------------------------------------------------------------------------------------------------

    async def create_sandbox(
        self,
        template: str | Template | None = None,
        *,
        limits: MachineLimits | None = None,
        envs: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: float | None = None,
        agent_id: str = "local",
        snapshot: str | None = None,
        most: Mapping[LimitName, float] | None = None,
        idle_seconds: float | None = None,
        durable: bool = True,
        progress: Progress = no_progress,
    ) -> SandboxInstance:
        """Start a sandbox from a template (built first, if need be and `auto_provision` allows it), or from a kept
        snapshot (its id; the template and the limits are the snapshot's own). One that nobody uses for `idle_seconds`
        ends (a durable one is suspended); None: it does not. One that is not `durable` ends with this process, whatever
        the engine is.

        `most` is what this caller's machine may have at most, beside the bounds of the settings.

        Raises:
            SnapshotNotFound, SnapshotFailed: there is no such snapshot, or it cannot be used here.
            ValidationFailed: more is asked for than the settings, or `most`, allow.
            VmNotAvailable: no usable back end, or the machine did not start.
            NoCapacity: no place or no memory for it within `capacity_timeout_seconds`.
            ImageError, ConfigError: the template is unknown, wrong or cannot be built.
        """
        check_texts(agent_id=agent_id, metadata=metadata)
        check_environment(envs)
        if self._history is not None:
            self._history.prepare()
        if snapshot is not None:
            if template is not None or limits is not None:
                raise ValidationFailed(
                    "A sandbox from a snapshot has the template and the limits of that.", remediation="Leave them out."
                )
            manager = await self._open()
            record = await asyncio.to_thread(manager.snapshots.store.record, snapshot)
            self._bounded(record.template.limits, record.limits, most)
            return await manager.copies.from_store(
                snapshot,
                envs=envs,
                metadata=metadata,
                timeout=timeout,
                agent_id=agent_id,
                durable=durable,
                idle_seconds=idle_seconds,
            )
        image = await self.image(template, progress)
        limits = self._bounded(image.limits, limits, most)
        manager = await self._open()
        return await manager.create(
            image,
            limits,
            envs=envs,
            metadata=metadata,
            timeout=timeout,
            agent_id=agent_id,
            idle_seconds=idle_seconds,
            durable=durable,
        )

    async def warm(
        self, template: str | Template | None = None, *, limits: MachineLimits | None = None, count: int | None = None
    ) -> None:
        """Fill the warm pool of a template; returns when `count` machines (default: `vm_pool_size`) are ready.

        Raises:
            NoCapacity: there is no room or no memory for so many.
            VmNotAvailable, ImageError, ConfigError: as of `create_sandbox`.
        """
        if count is not None and count < 1:
            raise ValidationFailed(
                f"count must be at least 1, not {count}.", remediation="Leave it out for the default."
            )
        image = await self.image(template)
        await (await self._open()).warm(image, self._bounded(image.limits, limits), count)

    def pool_status(self) -> list[PoolStatus]:
        """The machines that are made ahead, for each kind of sandbox that was asked for."""
        return [] if self._sandboxes is None else self._sandboxes.pool.status()

    async def image(self, template: str | Template | None = None, progress: Progress = no_progress) -> Image:
        """The image of a template (default: `default_vm_type` of the settings)."""
        if not isinstance(template, Template):
            name = template or self.settings.vm_execution.default_vm_type
            template = await asyncio.to_thread(load_template, name, self.settings)
        found = template
        image = await asyncio.to_thread(ImageStore(self.settings).find, found)
        if image is None and self.settings.vm_execution.auto_provision:
            from emberbox.images.builder import ensure_image

            return await ensure_image(found, self.settings, progress)
        if image is None:
            raise ImageError(
                f"The image of template {found.name!r} is not built.",
                remediation=f"Run `emberbox image build {found.name}`, or set auto_provision.",
            )
        return image

    def _bounded(
        self, default: MachineLimits, wanted: MachineLimits | None, caller: Mapping[LimitName, float] | None = None
    ) -> MachineLimits:
        """The limits of a machine: those that are asked for, the template's own where nothing is said, or the caller's
        where these are smaller.

        Raises:
            ValidationFailed: more is asked for than `resource_limits`, the template and the caller's own limits allow;
                nothing that was asked for is cut down.
        """
        most = self.settings.vm_execution.security_settings.resource_limits
        asked = {} if wanted is None else {name: getattr(wanted, name) for name in wanted.model_fields_set}
        for field, bound in (caller or {}).items():
            if asked.get(field, 0) > bound:
                raise _too_much(field, asked[field], bound, caller=True)
        own = {name: min(getattr(default, name), bound) for name, bound in (caller or {}).items()}
        memory = asked.get("memory_mb", own.get("memory_mb", default.memory_mb))
        for size, room in _files_within(default, memory).items():
            own[size] = min(own.get(size, room), room)
        limits = MachineLimits.model_validate(default.model_dump() | own | asked)
        if limits.memory_mb > most.max_memory_mb:
            raise _too_much("memory_mb", limits.memory_mb, most.max_memory_mb)
        for name, value in asked.items():
            bound = getattr(most, f"max_{name}")
            if value > max(bound, getattr(default, name)):
                raise _too_much(name, value, bound)
        return limits

    def has_sandbox(self, sandbox_id: str) -> bool:
        """Whether `get_sandbox` would find it."""
        return self._sandboxes is not None and self._sandboxes.knows(sandbox_id)

    async def get_sandbox(self, sandbox_id: str) -> SandboxInstance:
        """A sandbox by id; one that was suspended is woken. Raises SessionNotFound."""
        return await (await self._open()).find(sandbox_id)

    async def kill_sandbox(self, sandbox_id: str) -> None:
        """End a sandbox for good, also one that was suspended. Raises SessionNotFound."""
        manager = await self._open()
        if manager.durability is None or not await manager.durability.forget(sandbox_id):
            await manager.get(sandbox_id).kill()

    async def lease(
        self,
        agent_id: str,
        vm_id: str | None = None,
        *,
        template: str | Template | None = None,
        limits: MachineLimits | None = None,
        envs: Mapping[str, str] | None = None,
        most: Mapping[LimitName, float] | None = None,
    ) -> SandboxInstance:
        """The sandbox of an agent: the one that is named, or the agent's own, which is made when there is none. It ends
        (a durable one is suspended) when it is not used for `session_idle_seconds`.

        Raises:
            SessionNotFound: the agent has no sandbox of that name.
            ValidationFailed: its own one is there, and has another template, other limits or another environment than
                are asked for.
            ValidationFailed: the agent's name is reserved, or no text.
            NoCapacity: the agent has as many as it may have, or the host has.
        """
        check_agent(agent_id)
        check_environment(envs)
        manager = await self._open()
        if vm_id is not None:
            if manager.agent_of(vm_id) != agent_id:
                raise SessionNotFound(f"Agent {agent_id!r:.80} has no sandbox {vm_id!r:.80}.")
            return await manager.find(vm_id)
        async with self._leasing.setdefault(agent_id, asyncio.Lock()):
            own = manager.own(agent_id)
            if own is not None:
                instance = await manager.find(own)
                self._check_same(instance, template, limits, envs)
                return instance
            if self._history is not None:
                self._history.prepare()
            image = await self.image(template)
            bounded = self._bounded(image.limits, limits, most)
            idle = self.settings.session_idle_seconds
            return await manager.create(image, bounded, envs=envs, agent_id=agent_id, own=True, idle_seconds=idle)

    @staticmethod
    def _check_same(
        instance: SandboxInstance,
        template: str | Template | None,
        limits: MachineLimits | None,
        envs: Mapping[str, str] | None,
    ) -> None:
        """Raises ValidationFailed where a sandbox is not what is asked for."""
        differs = []
        if template is not None:
            name = template.name if isinstance(template, Template) else template
            if name != instance.image.template.name:
                differs.append(f"template {instance.image.template.name!r} (asked for: {name!r:.80})")
        asked = {} if limits is None else {name: getattr(limits, name) for name in limits.model_fields_set}
        for name, value in asked.items():
            if getattr(instance.limits, name) != value:
                differs.append(f"{name} {getattr(instance.limits, name)} (asked for: {value})")
        other = sorted(name for name, value in (envs or {}).items() if instance.envs.get(name) != value)
        if other:
            differs.append(f"another environment ({', '.join(other):.200})")
        if differs:
            raise ValidationFailed(
                f"Agent {instance.agent_id!r:.80} has sandbox {instance.id} already, with {'; '.join(differs)}.",
                remediation="Leave these out, end that sandbox first, or make another one with `create_sandbox`.",
            )

    async def list_sandboxes(self) -> list[SandboxInstance]:
        """Those that have a machine."""
        return (await self._open()).instances()

    def live_sandboxes(self) -> list[SandboxInstance]:
        """As `list_sandboxes`, without starting anything."""
        return [] if self._sandboxes is None else self._sandboxes.instances()

    def snapshot_figures(self) -> tuple[int, int]:
        """How many snapshots live sandboxes have, and their bytes."""
        infos = [info for instance in self.live_sandboxes() for info in self.checkpoints.known(instance)]
        return len(infos), sum(info.size_bytes for info in infos)

    async def list_suspended(self) -> list[SandboxRecord]:
        """Those that were suspended; `get_sandbox` wakes them."""
        return (await self._open()).suspended()

    async def agent_of(self, sandbox_id: str) -> str | None:
        """Whose a sandbox is; None where there is none of this id."""
        return (await self._open()).agent_of(sandbox_id)

    @property
    def checkpoints(self) -> Checkpoints:
        """Snapshots, rollback, fork and branch of the sandboxes of this engine; raises VmNotAvailable."""
        if self._checkpoints is None:
            raise VmNotAvailable("The engine has no sandboxes.", remediation="Create one first.")
        return self._checkpoints

    async def close(self) -> None:
        """Kill every sandbox and the helper processes. The engine cannot be used again."""
        self._closed = True
        if self._opening is not None:
            await asyncio.wait([self._opening])  # else it would open what nobody closes
        if self._idle is not None:
            self._idle.cancel()
            await asyncio.wait([self._idle])  # it may be about to suspend one
        try:
            if self._sandboxes is not None:
                await self._sandboxes.close()
            if self._checkpoints is not None:
                await self._checkpoints.close()
            if self._factory is not None:
                await self._factory.close()
        finally:
            self._sandboxes = self._factory = self._checkpoints = self._idle = None
            if self._ledger is not None:
                self._ledger.close()
            if self._history is not None:
                await self._history.close()

    def abandon(self) -> None:
        """Let go of everything without an event loop, when that is closed already: the helpers then kill all
        sandboxes."""
        self._closed = True
        if self._sandboxes is not None:
            self._sandboxes.pool.abandon()
        if self._factory is not None:
            self._factory.abandon()
