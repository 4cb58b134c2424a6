"""Starts gVisor sandboxes and clears away what dead owners left."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import ExecutionTimeout, VmNotAvailable
from emberbox.host.cgroups import CgroupRoot
from emberbox.host.rundir import RunDir
from emberbox.host.spawner import Spawner
from emberbox.images.store import Image
from emberbox.machines.contract import Capabilities, Machine, Snapshot
from emberbox.machines.digests import Verifier
from emberbox.machines.gvisor.adoption import take_machine
from emberbox.machines.gvisor.bundle import write_bundle
from emberbox.machines.gvisor.control import Control, ControlError
from emberbox.machines.gvisor.dialect import dialect_of
from emberbox.machines.gvisor.machine import STATE, GvisorMachine
from emberbox.machines.gvisor.runsc import Runsc, digest_of, find_runsc
from emberbox.machines.pipes import close_all, pipes
from emberbox.machines.process_factory import ProcessFactory, remedy
from emberbox.models import MachineLimits

_FLAGS = (
    "--platform=systrap",
    "--network=none",
    "--overlay2=none",
    "--ignore-cgroups",
    "--host-uds=none",
    "--host-fifo=none",
)


class GvisorFactory(ProcessFactory[GvisorMachine]):
    """Makes gVisor machines. One per engine."""

    backend = "gvisor"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.run_dir)
        self._runsc: Runsc | None = None
        self._verifier = Verifier()

    @property
    def identity(self) -> str:
        return f"gvisor {self._found_runsc().version}"

    @property
    def probed(self) -> str:
        return f"{self.identity} (sha256 {digest_of(self._found_runsc().program)[:16]})"

    def _found_runsc(self) -> Runsc:
        if self._runsc is None:
            runsc, problems = find_runsc(self._settings)
            if runsc is None:
                raise VmNotAvailable(
                    "gVisor cannot be used, runsc was not found: " + "; ".join(problems) + ".",
                    remediation="Run `emberbox setup`; it installs runsc into a private folder.",
                )
            self._runsc = runsc
        return self._runsc

    def capabilities(self) -> Capabilities:
        runsc, problems = find_runsc(self._settings)
        self._runsc = runsc
        limitations = []
        if self._cgroups is None:
            limitations.append("no writable memory cgroup: memory is watched every 250 ms instead, CPU is not limited")
        elif os.getuid() != 0:
            limitations.append("ordinary user: limits of CPU and memory depend on delegated cgroups")
        if os.getuid() != 0:
            limitations.append("ordinary user: sandboxes run in a user namespace; networks will need root")
        cgroup = self._cgroups.version if self._cgroups else "none"
        if runsc is None:
            why = "runsc was not found: " + "; ".join(problems)
            remedy = "Run `emberbox setup`; it installs runsc into a private folder."
            return Capabilities(self.backend, False, why, remedy, cgroup=cgroup, limitations=tuple(limitations))
        limitations += [f"passed over: {problem}" for problem in problems]
        dialect = dialect_of(runsc.program)
        limitations += runsc.remarks()
        if dialect.network is None:
            limitations.append(
                "its control socket is not known: snapshots and forks go by its commands, which takes longer"
            )
        if dialect.lacks:
            limitations.append(f"this runsc lacks: {', '.join(dialect.lacks)}")
        return Capabilities(
            self.backend,
            True,
            f"runsc of {runsc.origin}",
            version=runsc.version,
            program=str(runsc.program),
            cgroup=cgroup,
            limitations=tuple(limitations),
            features=dialect.has,
        )

    async def boot(self, image: Image, limits: MachineLimits) -> Machine:
        """Start a sandbox from the template's files.

        Raises:
            VmNotAvailable: runsc is missing or refused; the message has its own words.
            ExecutionTimeout: it did not come up in `boot_timeout_seconds`.
        """

        async def start(machine: GvisorMachine) -> None:
            await self._command(machine, "run", "--detach")
            machine.running()

        return await self._make(image, limits, start)

    async def prepare(self, image: Image, limits: MachineLimits) -> Machine:
        """Create a sandbox that is empty until `fork` fills it; this is more than half of a fork's time.

        Raises:
            VmNotAvailable, ExecutionTimeout: as of `boot`.
        """

        async def start(machine: GvisorMachine) -> None:
            await self._command(machine, "create")
            await machine.pause(idle=True)  # it would use 2 % of a processor

        return await self._make(image, limits, start)

    async def fork(self, snapshot: Snapshot, blank: Machine | None = None) -> Machine:
        """Start a sandbox that goes on from a snapshot: created empty (or `blank`), then filled through its control
        socket, or by runsc's own command where the socket does not do it.

        Raises:
            VmNotAvailable, ExecutionTimeout: as of `boot`; or the snapshot's files cannot be used.
        """
        if isinstance(blank, GvisorMachine):
            if blank.recipe == (snapshot.image.directory, snapshot.limits) and await self._filled(blank, snapshot):
                return blank
            await blank.kill()
        try:
            return await self._make(snapshot.image, snapshot.limits, lambda machine: self._restore(machine, snapshot))
        except ControlError:
            pass

        async def start(machine: GvisorMachine) -> None:
            await self._command(machine, "restore", "--detach", f"--image-path={snapshot.directory}")
            machine.running(snapshot.last_request)

        return await self._make(snapshot.image, snapshot.limits, start)

    async def _filled(self, blank: GvisorMachine, snapshot: Snapshot) -> bool:
        """Fill a blank; False where that did not work, and the blank is gone."""
        try:
            async with asyncio.timeout(self._settings.boot_timeout_seconds):
                await asyncio.to_thread(self._verifier.verify, snapshot)
                await blank.resume()
                await self._fill(blank, snapshot)
        except BaseException as exc:
            await asyncio.shield(asyncio.ensure_future(blank.kill()))
            if isinstance(exc, ControlError | VmNotAvailable | OSError):  # a time-out is an OSError as well
                return False
            raise
        return True

    async def _restore(self, machine: GvisorMachine, snapshot: Snapshot) -> None:
        check = asyncio.ensure_future(asyncio.to_thread(self._verifier.verify, snapshot))
        try:
            await self._command(machine, "create")  # takes longer than the check
        finally:
            await check
        await self._fill(machine, snapshot)

    async def _fill(self, machine: GvisorMachine, snapshot: Snapshot) -> None:
        def restore() -> None:
            with Control(machine.control_socket, self._settings.boot_timeout_seconds, machine.dialect()) as control:
                control.restore(snapshot.directory)

        await asyncio.to_thread(restore)
        machine.running(snapshot.last_request)

    async def _make(
        self, image: Image, limits: MachineLimits, start: Callable[[GvisorMachine], Awaitable[None]]
    ) -> Machine:
        """Make the place of a machine and start it; whatever goes wrong, nothing is left."""
        spawner, run_dir = await self._place_ready()
        runsc = self._found_runsc()
        machine = self._new(run_dir, image, limits, spawner, runsc)
        try:
            write_bundle(machine.directory, image, limits, hostname="emberbox")
            async with asyncio.timeout(self._settings.boot_timeout_seconds):
                await start(machine)
        except BaseException as exc:
            # the clean-up runs to its end even if the caller is cancelled once more
            await asyncio.shield(asyncio.ensure_future(self._abort(machine)))
            if isinstance(exc, TimeoutError):
                raise ExecutionTimeout(f"Sandbox {machine.id} did not start in time.", retryable=True) from exc
            if isinstance(exc, OSError):
                raise VmNotAvailable(
                    f"Cannot prepare sandbox {machine.id} in {run_dir.path}: {exc.strerror}.",
                    remediation=remedy(exc),
                    retryable=True,
                ) from exc
            raise
        return machine

    async def adopt(self) -> dict[str, Machine]:
        """Machines that outlived the last process of this state directory; its spawner becomes ours."""
        runsc = await asyncio.to_thread(self._found_runsc)

        async def take(spawner: Spawner, run_dir: RunDir, name: str, cgroups: CgroupRoot | None) -> GvisorMachine:
            machine = await take_machine(spawner, run_dir, name, cgroups, _command_line(runsc, run_dir.path / name))
            machine.on_dead = self._forget
            return machine

        return dict(await self._take_over(take))

    def _check(self) -> None:
        self._found_runsc()

    # --- steps of a boot ------------------------------------------------------------------------------------------

    def _new(
        self, run_dir: RunDir, image: Image, limits: MachineLimits, spawner: Spawner, runsc: Runsc
    ) -> GvisorMachine:
        """A machine that has its place and its cgroup, and no process yet. From here on `_abort` clears it."""
        machine_id = f"gv{secrets.token_hex(5)}"
        group = self._make_group(run_dir, machine_id, limits)
        directory = run_dir.path / machine_id
        command = _command_line(runsc, directory)
        machine = GvisorMachine(machine_id, directory, spawner, group, limits.memory_mb << 20, command, self._forget)
        machine.recipe = (image.directory, limits)
        self._machines[machine_id] = machine
        return machine

    async def _command(self, machine: GvisorMachine, verb: str, *options: str) -> None:
        """A command of runsc that makes the sandbox; its standard streams become those of the agent."""
        argv = [*machine.runsc, verb, *options, f"--bundle={machine.directory}", machine.id]
        (guest_in, write_fd), (read_fd, guest_out), (stderr_fd, guest_err) = pipes(3)
        machine.attach(read_fd, write_fd, stderr_fd)
        try:
            command = await machine.spawner.spawn(
                argv,
                stdin=guest_in,
                stdout=guest_out,
                stderr=guest_err,
                env=machine.command_env,
                cwd=str(machine.directory),
                join=machine.cgroup_join,
            )
        finally:
            close_all((guest_in, guest_out, guest_err))
        try:
            status = await asyncio.shield(command.ended)
        except asyncio.CancelledError:
            machine.prepared([command])
            raise
        if status != 0:
            raise VmNotAvailable(
                f"runsc could not {verb} a sandbox (status {status}): {_first_lines(machine.stderr_text())}",
                remediation="Run `emberbox doctor`; it starts a sandbox and explains what the host lacks.",
                # a state that runsc itself refuses (another processor, say) it will refuse again
                retryable=verb != "restore" or status < 0,
            )
        pids = _sandbox_pids(machine.directory / STATE, machine.id)
        machine.prepared([await machine.spawner.own(pid) for pid in pids])

    async def _abort(self, machine: GvisorMachine) -> None:
        """Clear a machine that did not come up: processes that exist already are found by their group or name."""
        await machine.kill_strays()
        await machine.kill()


def _command_line(runsc: Runsc, directory: Path) -> list[str]:
    """Of runsc for the machine in a directory, up to the verb. Blocks a moment, the first time."""
    return [str(runsc.program), f"--root={directory / STATE}", *_FLAGS, *dialect_of(runsc.program).flags]


def _sandbox_pids(root: Path, machine_id: str) -> list[int]:
    """Pids of sandbox and gofer, from runsc's state file (its name and fields: runsc/container/state_file.go)."""
    path = root / f"{machine_id}_sandbox:{machine_id}.state"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return [int(state["sandbox"]["pid"]), int(state["goferPid"])]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise VmNotAvailable(f"runsc left no readable state file {path.name}: {exc!r}.") from exc


def _first_lines(text: str) -> str:
    return " / ".join(text.splitlines()[:4])[:1500] or "it said nothing"
