"""Undo: snapshots by hand and by policy, rollback to wherever one is, differences between two points.

Policies (HistoryConfig): `snapshot_on_execution` keeps a snapshot after every execution. `snapshot_on_failure` and
`auto_rollback_on_failure` need the state before a failed one: a snapshot that is taken after every success while the
caller thinks, and replaced by the next. Where no policy asks, nothing is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from emberbox._text import check_texts
from emberbox.errors import (
    ExecutionFailed,
    ExecutionTimeout,
    ForkFailed,
    HistoryError,
    RollbackFailed,
    SnapshotFailed,
    SnapshotNotFound,
    ValidationFailed,
    VmConnectionError,
    VmNotAvailable,
)
from emberbox.history.recorder import HistoryRecorder
from emberbox.models import (
    Execution,
    FileDiff,
    HistoryConfig,
    RollbackResponse,
    SnapshotInfo,
    SnapshotKind,
    SnapshotStrategy,
)
from emberbox.sandbox.copies import CopyOptions, SandboxCopies
from emberbox.sandbox.instance import SandboxInstance, SandboxState
from emberbox.sandbox.snapshots.diff import diff
from emberbox.sandbox.snapshots.path_rollback import take_back
from emberbox.sandbox.snapshots.service import SnapshotService
from emberbox.sandbox.snapshots.tree import Node, SnapshotTree

LAST_SUCCESS = "last-success"
_NEARLY = (
    "There was no snapshot of the moment before that execution: what files.* and commands had changed between the one "
    "before it and it is undone as well."
)
_FAILURES = (
    ExecutionFailed, ExecutionTimeout, RollbackFailed, SnapshotFailed, SnapshotNotFound, VmConnectionError,
    VmNotAvailable,
)  # fmt: skip
"""Why an undo did not come about: no reason to lose the answer of what ran."""


class Checkpoints:
    """Undo for the sandboxes of one engine.

    Args:
        snapshots: takes and finds snapshots, and goes back to them.
        copies: starts other sandboxes from them.
        config: the policies.
        history: where executions are found that are not in a sandbox's own past; None: nowhere.
    """

    def __init__(
        self,
        snapshots: SnapshotService,
        copies: SandboxCopies,
        config: HistoryConfig,
        history: HistoryRecorder | None,
    ) -> None:
        self._snapshots = snapshots
        self._copies = copies
        self._config = config
        self._history = history
        self._every = config.enabled and config.snapshot_on_execution
        self._on_failure = config.enabled and config.snapshot_on_failure
        self._back = config.enabled and config.auto_rollback_on_failure
        self._any = self._every or self._on_failure or self._back
        self._under_way: WeakKeyDictionary[SandboxInstance, asyncio.Task[None]] = WeakKeyDictionary()
        self._recorded: WeakKeyDictionary[SandboxInstance, deque[str | None]] = WeakKeyDictionary()
        """Executions that the history still has an entry of, and None for the state before the first one."""

    # --- by hand --------------------------------------------------------------------------------------------------

    async def snapshot(
        self, sandbox: SandboxInstance, name: str | None = None, *, keep: bool = False, description: str = ""
    ) -> SnapshotInfo:
        """Keep a sandbox as it is now: files, memory and processes. It goes on.

        Raises:
            SnapshotFailed: code is running in it, it has `max_snapshots` already, or the disk is full.
        """
        check_texts(name=name, description=description)
        await self._settled(sandbox)
        return (await self._snapshots.snapshot(sandbox, name, keep=keep, description=description)).info

    async def snapshots(self, sandbox: SandboxInstance) -> list[SnapshotInfo]:
        """Snapshots of a sandbox, oldest first."""
        await self._settled(sandbox)
        return self._snapshots.tree(sandbox).infos()

    def known(self, sandbox: SandboxInstance) -> list[SnapshotInfo]:
        """The same without waiting for one that is being taken."""
        return self._snapshots.tree(sandbox).infos()

    async def delete(self, sandbox: SandboxInstance, wanted: str) -> None:
        """Remove a snapshot by id or name; raises SnapshotNotFound."""
        self._snapshots.delete(sandbox, wanted)

    async def rollback(
        self, sandbox: SandboxInstance, target: str, *, paths: Sequence[str] | None = None, keep_current: bool = False
    ) -> RollbackResponse:
        """Take a sandbox back: to a snapshot (id or name), to before an execution, or to "last-success".

        Args:
            sandbox: what runs in it is killed, unless there are `paths`.
            target: where to.
            paths: take back only these files and folders; memory and processes stay as they are.
            keep_current: take a snapshot of now before.

        Raises:
            SnapshotNotFound: there is no snapshot of that state.
            RollbackFailed: nothing could be started from it; the sandbox is as it was.
            SnapshotFailed: `keep_current` was not possible; the sandbox is as it was.
        """
        began = time.monotonic()
        await self._settled(sandbox)
        tree = self._snapshots.tree(sandbox)
        node, exact = await self._resolve(sandbox, tree, target)
        files, undone, processes = None, [], 0
        with tree.use(node):  # what is taken meanwhile must not push it out
            before = (await self._snapshots.snapshot(sandbox, kind="pre_rollback")).info if keep_current else None
            if paths is not None:
                files = await self._take_back(sandbox, node, paths)
            else:
                counting = asyncio.ensure_future(_processes(sandbox))  # 10 ms that the new machine's start hides
                try:
                    undone = await self._snapshots.rollback(sandbox, node, counting)
                    processes = await counting
                finally:
                    counting.cancel()
        what = f"{len(files)} files" if files is not None else "everything"
        more = "" if exact else " " + _NEARLY
        return RollbackResponse(
            message=f"Took {what} back to {node.info.name}.{more}",
            snapshot_id=node.info.snapshot_id,
            vm_id=sandbox.id,
            pre_rollback_snapshot_id=before.snapshot_id if before else None,
            rollback_time_ms=round((time.monotonic() - began) * 1000, 3),
            files_affected=files,
            executions_undone=undone,
            processes_terminated=processes,
            rolled_back_at=datetime.now(UTC),
        )

    async def _take_back(self, sandbox: SandboxInstance, node: Node, paths: Sequence[str]) -> list[str]:
        if isinstance(paths, str) or not paths:
            raise ValidationFailed("paths must be a list of at least one path.", remediation="Leave it out for all.")
        async with self._copies.reading(sandbox, node) as then:
            return await take_back(then, sandbox, paths)

    async def branch(
        self, sandbox: SandboxInstance, target: str, *, timeout: float | None = None, options: CopyOptions | None = None
    ) -> SandboxInstance:
        """A new sandbox that goes on from a point of this one (as of `rollback`), which is not touched. `options`: what
        it is other than this one, instead of a `timeout` alone."""
        await self._settled(sandbox)
        tree = self._snapshots.tree(sandbox)
        node, _ = await self._resolve(sandbox, tree, target)
        return await self._copies.branch(sandbox, node, options or CopyOptions(timeout))

    async def fork(
        self,
        sandbox: SandboxInstance,
        count: int = 1,
        *,
        timeout: float | None = None,
        options: CopyOptions | None = None,
    ) -> list[SandboxInstance]:
        """New sandboxes that go on from this moment, each with its own copy of memory, processes and files. `options`:
        as of `branch`.

        Raises:
            SnapshotFailed: code is running in the sandbox.
            ForkFailed: some could not be started; it carries those that were.
        """
        if count < 1:
            raise ValidationFailed(f"count must be at least 1, not {count}.", remediation="Leave it out for one fork.")
        children = await self._copies.fork(sandbox, count, options or CopyOptions(timeout))
        good = [child for child in children if isinstance(child, SandboxInstance)]
        bad = [child for child in children if not isinstance(child, SandboxInstance)]
        if bad:
            raise ForkFailed(f"{len(bad)} of {count} forks of {sandbox.id} failed: {bad[0].message}", good, bad)
        return good

    async def diff(self, sandbox: SandboxInstance, before: str, after: str | None = None) -> list[FileDiff]:
        """Files that differ between two points of a sandbox (as of `rollback`; None: now).

        Raises:
            SnapshotNotFound: there is no snapshot of one of them.
        """
        await self._settled(sandbox)
        tree = self._snapshots.tree(sandbox)
        old, _ = await self._resolve(sandbox, tree, before)
        new = None if after is None else (await self._resolve(sandbox, tree, after))[0]
        async with contextlib.AsyncExitStack() as opened:
            then = await opened.enter_async_context(self._copies.reading(sandbox, old))
            now = sandbox if new is None else await opened.enter_async_context(self._copies.reading(sandbox, new))
            return await diff(then, now)

    async def _resolve(self, sandbox: SandboxInstance, tree: SnapshotTree, target: str) -> tuple[Node, bool]:
        """The snapshot that a target means, and whether it is of the very state; raises SnapshotNotFound."""
        if target == LAST_SUCCESS:
            node = tree.last_good()
            if node is None:
                raise SnapshotNotFound(
                    f"Sandbox {sandbox.id} has no snapshot of a state after a success.",
                    remediation="Take one with snapshot(), or set snapshot_on_failure or snapshot_on_execution.",
                )
            return node, True
        if target.startswith("ex-"):
            return await self._before(sandbox, tree, target)
        return tree.find(target), True

    async def _before(self, sandbox: SandboxInstance, tree: SnapshotTree, execution_id: str) -> tuple[Node, bool]:
        """The snapshot of the state before an execution, or else of the state after the one before it."""
        entry = None
        if self._history is not None:
            with contextlib.suppress(HistoryError):
                entry = await self._history.get(execution_id)
        if entry is not None and entry.snapshot_before_id is not None:
            with contextlib.suppress(SnapshotNotFound):
                return tree.find(entry.snapshot_before_id), True
        parent: str | None
        exact = sandbox.lineage.snapshots_before.get(execution_id)
        if exact is not None:
            with contextlib.suppress(SnapshotNotFound):
                return tree.find(exact), True
        if execution_id in sandbox.lineage.executions:
            parent = sandbox.lineage.parent_of(execution_id)
        elif entry is not None and entry.vm_id == sandbox.id:
            parent = entry.parent_id
        else:
            raise SnapshotNotFound(
                f"Sandbox {sandbox.id} has no execution {execution_id:.80}.", remediation="history() shows them."
            )
        node = tree.ends_with(parent)
        if node is None:
            raise SnapshotNotFound(
                f"There is no snapshot of sandbox {sandbox.id} as it was before {execution_id}.",
                remediation="list_snapshots() shows what there is; snapshot_on_execution keeps one of every state.",
            )
        return node, False

    # --- by policy ------------------------------------------------------------------------------------------------

    def began(self, sandbox: SandboxInstance, execution_id: str) -> None:
        """An execution is about to begin: remember the snapshot of this very state, if there is one."""
        node = self._of_now(sandbox)
        sandbox.began(execution_id, None if node is None else node.info.snapshot_id)

    def _of_now(self, sandbox: SandboxInstance) -> Node | None:
        """The snapshot of this very state, if there is one."""
        node = self._snapshots.tree(sandbox).current()
        return node if node is not None and sandbox.lineage.is_at(node.moment) else None

    async def before(self, sandbox: SandboxInstance, wanted: SnapshotStrategy = "none") -> tuple[str | None, list[str]]:
        """Before an execution: the snapshot of this state that the policies (and what is `wanted` for this execution)
        need, and remarks for the caller."""
        if not (self._any or wanted in {"pre-execution", "on-failure"}):
            return None, []
        await self._settled(sandbox)
        await sandbox.settled()
        if sandbox.state is not SandboxState.READY:
            return None, []  # what is asked of it will say why
        node = self._of_now(sandbox)
        if node is None:
            try:
                node = await self._take(sandbox, "pre_execution")
            except _FAILURES as exc:
                return None, [f"No snapshot of the state before it was taken: {exc.message}"]
        return node.info.snapshot_id, []

    async def _take(self, sandbox: SandboxInstance, kind: SnapshotKind) -> Node:
        """A snapshot of a policy. Unless each is kept, it takes the place of the one before it."""
        node = await self._snapshots.snapshot(sandbox, kind=kind)
        if not self._every and kind != "failure":
            self._snapshots.tree(sandbox).put_in_place(node)
        return node

    async def after(
        self, sandbox: SandboxInstance, execution: Execution, before: str | None, wanted: SnapshotStrategy = "none"
    ) -> None:
        """After an execution: what the policies want, and the caller of this one, and what is to be told of it."""
        if not execution.succeeded or self._every or wanted == "pre-execution":
            execution.snapshot_before = before  # else it makes room for the next one
        sandbox.finished(execution.execution_id, succeeded=execution.succeeded)
        await sandbox.settled()
        self._tell_of_death(sandbox, execution)
        undone = execution.execution_id not in sandbox.lineage.executions and execution.restored_from is None
        if undone:
            return  # who rolled back while it ran wants that state, whatever became of it
        if wanted == "pre-execution" and before is not None:
            self._stays(sandbox, before)
        if self._any:
            self._drop_unrecorded(sandbox, execution.execution_id)
        if execution.succeeded and not self._every and wanted != "post-execution":
            if self._any:
                self._under_way[sandbox] = asyncio.create_task(self._quietly_take(sandbox))
            return
        try:
            if execution.succeeded:
                node = await self._take(sandbox, "post_execution")
                if wanted == "post-execution":
                    node.stays()
                execution.snapshot_after = node.info.snapshot_id
            else:
                await self._failed(sandbox, execution, before, wanted)
        except _FAILURES as exc:
            execution.notes.append(f"Not all was done that the history's policy asks for: {exc.message}")

    def _drop_unrecorded(self, sandbox: SandboxInstance, execution_id: str) -> None:
        """Snapshots of a policy go with the entries of the history that they belong to."""
        recorded = self._recorded.setdefault(sandbox, deque([None], self._config.max_history_entries + 1))
        recorded.append(execution_id)
        if sandbox.state is SandboxState.CLOSED:
            return
        tree = self._snapshots.tree(sandbox)
        for node in tree.nodes():
            automatic = node.info.kind not in {"manual", "shutdown", "pre_rollback"}
            if automatic and node is not tree.current() and node.info.execution_id not in recorded:
                tree.remove(node.info.snapshot_id)

    @staticmethod
    def _tell_of_death(sandbox: SandboxInstance, execution: Execution) -> None:
        restored = sandbox.tell_restoration()
        if restored is None:
            return
        execution.restored_from, execution.lost_executions = restored.snapshot_id, restored.lost
        others = restored.lost_count - (execution.execution_id in restored.lost)
        names = len(restored.lost)
        named = f", of which the last {names} are named" if restored.lost_count > names else ""
        plural = "s" if others > 1 else ""
        lost = f"; the effects of {others} execution{plural} before it are lost{named}" if others else ""
        goes_on = f"The sandbox goes on from {restored.snapshot_id}"
        if restored.snapshot_id is None:
            goes_on = "There was no snapshot of the sandbox: this is another one"
        execution.notes.append(f"The machine died ({restored.death.message}). {goes_on}{lost}.")

    def _stays(self, sandbox: SandboxInstance, snapshot_id: str) -> Node | None:
        """A snapshot that was to make room for the next one stays within reach."""
        nodes = self._snapshots.tree(sandbox).nodes()
        node = next((node for node in nodes if node.info.snapshot_id == snapshot_id), None)
        if node is not None:
            node.stays()
        return node

    async def _failed(
        self, sandbox: SandboxInstance, execution: Execution, before: str | None, wanted: SnapshotStrategy
    ) -> None:
        tree = self._snapshots.tree(sandbox)
        node = None if before is None else self._stays(sandbox, before)
        if execution.restored_from is not None or sandbox.state is not SandboxState.READY:
            return
        if self._every or self._on_failure or wanted in {"on-failure", "post-execution"}:
            try:
                with contextlib.nullcontext() if node is None else tree.use(node):  # it must not push this one out
                    execution.snapshot_after = (await self._take(sandbox, "failure")).info.snapshot_id
            except _FAILURES as exc:
                if not self._back or node is None:
                    raise
                execution.notes.append(f"No snapshot of what failed was taken: {exc.message}")
        if self._back:
            if node is None:
                raise SnapshotFailed("there is no snapshot to roll back to")
            await self._snapshots.rollback(sandbox, node)
            execution.rolled_back_to = node.info.snapshot_id
            execution.notes.append(f"It failed; the sandbox was rolled back to {node.info.snapshot_id}.")

    async def _quietly_take(self, sandbox: SandboxInstance) -> None:
        """While the caller thinks. The next execution takes one itself when this fails, and says why."""
        with contextlib.suppress(*_FAILURES):
            await self._take(sandbox, "post_execution")

    async def _settled(self, sandbox: SandboxInstance) -> None:
        """Wait for the snapshot that is being taken."""
        task = self._under_way.pop(sandbox, None)
        if task is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        """Wait for what is under way, when all sandboxes are gone."""
        tasks = list(self._under_way.values())
        if tasks:
            await asyncio.wait(tasks)
        await self._copies.close()


async def _processes(sandbox: SandboxInstance) -> int:
    """How many of the user's processes and threads there are; 0 when it cannot be asked."""
    with contextlib.suppress(*_FAILURES):
        return (await sandbox.metrics()).processes
    return 0
