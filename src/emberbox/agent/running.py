"""The executions of one command: in their order, with repairs and what is undone between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emberbox.agent.deciding import QUESTION, Choice, let_ask
from emberbox.agent.listening import AgentListener
from emberbox.agent.models import CommandOutput
from emberbox.agent.runtime import Runtime
from emberbox.errors import (
    ConfigError,
    HistoryError,
    PolicyBlocked,
    RollbackFailed,
    SnapshotFailed,
    UnsupportedLanguage,
    ValidationFailed,
    VmExecutionError,
)
from emberbox.models import BlockError, CodeBlock, Execution, SnapshotInfo, TerminationReason, VmExecuteResponse

BAD_CALL = "bad_tool_call"
"""Code of the error of a tool call that makes no sense."""
_NEW = "The agent's sandbox had ended; this ran in a new one, without the files and variables of before."
_SWITCHED_OFF = ConfigError(
    "The role does not let code run: vm_execution.enabled is false.",
    remediation='Set "vm_execution": {"enabled": true} in the role file.',
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one block."""

    language: str
    came: Execution | VmExecutionError

    @property
    def refused(self) -> bool:
        """Policy, a hook, a person or the role did not let it run: no reason to repair it."""
        return isinstance(self.came, PolicyBlocked | UnsupportedLanguage | ConfigError)

    @property
    def failed(self) -> bool:
        if isinstance(self.came, Execution):
            return not self.came.succeeded
        return not self.refused

    @property
    def timed_out(self) -> bool:
        return isinstance(self.came, Execution) and self.came.termination_reason is TerminationReason.TIMEOUT


class Executions:
    """Runs the blocks of a command and writes what came of them into its output.

    Args:
        place: where they run.
        output: of the command.
        listener: told of each.
    """

    def __init__(self, runtime: Runtime, output: CommandOutput, listener: AgentListener) -> None:
        self._runtime = runtime
        self._output = output
        self._listener = listener
        self._base: SnapshotInfo | None = None
        """The sandbox before the code that failed last."""
        self.failed = False
        """What ran last failed, so that what runs next is a repair."""
        self.last: list[Outcome] = []
        """The outcomes of the last blocks that ran together, and of the calls beside them that made no sense."""
        self._bad: list[Outcome] = []
        self._good: set[tuple[str, str]] = set()
        """Language and code of what ran well, and was not undone."""
        self._good_before: set[tuple[str, str]] = set()
        """The same, as of the snapshot."""

    @property
    def succeeded(self) -> set[tuple[str, str]]:
        """Language and code of what ran well, and is not undone before the next try."""
        goes_back = self.failed and self._base is not None
        return self._good_before if goes_back else self._good

    def found(self, blocks: Sequence[CodeBlock], number: int = 0) -> None:
        """Blocks of the command's text (0), or of the model's answer of this number."""
        for block in blocks:
            block.metadata["round"] = number
        self._output.code_blocks += blocks

    def bad_call(self, problem: str) -> None:
        """A call of a tool that makes no sense."""
        remedy = "The model was told; a larger one makes fewer such mistakes."
        self._output.errors.append(BlockError(code=BAD_CALL, message=problem, remediation=remedy))
        self._bad.append(Outcome("none", ValidationFailed(problem, remediation=remedy)))

    async def run(self, choices: Sequence[Choice]) -> list[Outcome]:
        """Run blocks one after the other. One that fails does not stop the others.

        Raises:
            VmExecutionError: no sandbox could be made, or what runs cannot be recorded.
        """
        if choices and self._runtime.role.vm_execution.enabled:
            await self._prepare()
        outcomes = [await self._one(choice) for choice in choices]
        self.last, self._bad = outcomes + self._bad, []
        if outcomes:
            self.failed = any(outcome.failed for outcome in outcomes)
        return outcomes

    async def done(self) -> None:
        """The command has ended: its snapshot is not needed any more."""
        base, self._base = self._base, None
        sandbox = self._runtime.sandbox
        if base is not None and sandbox is not None and sandbox.sandbox_id == base.sandbox_id:
            try:
                await sandbox.delete_snapshot(base)
            except VmExecutionError:  # it ends with its sandbox
                return

    async def _prepare(self) -> None:
        """Open the sandbox; go back before a repair, if that is wanted, and else remember where to go back to."""
        sandbox, is_new = await self._runtime.open()
        if is_new:
            self._note(_NEW)
            self._good.clear()
        if self.failed:
            self._output.repairs += 1
        if not self._runtime.role.rollback_between_tries:
            return
        try:
            if self.failed and self._base is not None and self._base.sandbox_id == sandbox.sandbox_id:
                await sandbox.rollback(self._base)
                self._output.rollbacks.append(self._base.snapshot_id)
                self._good = set(self._good_before)
                await self._listener.taken_back(self._base.snapshot_id)
            else:
                await self.done()
                self._base, self._good_before = await sandbox.snapshot(), set(self._good)
        except (SnapshotFailed, RollbackFailed) as exc:
            self._note(f"Nothing is taken back before the next try: {exc.message}")

    async def _one(self, choice: Choice) -> Outcome:
        block = choice.block
        index = next(i for i, one in enumerate(self._output.code_blocks) if one is block)
        try:
            if not self._runtime.role.vm_execution.enabled:
                raise _SWITCHED_OFF
            if choice.broken:
                self._runtime.extractor.validate_code(block)  # raises what is wrong with it
                raise ValidationFailed(f"The {block.language} code has a syntax error.")
            execution = await self._execute(index, choice)
        except HistoryError:
            raise
        except VmExecutionError as exc:
            told = BlockError(block=index, code=exc.code, message=exc.message, remediation=exc.remediation)
            self._output.errors.append(told)
            await self._listener.block_refused(index, exc)
            return Outcome(block.language, exc)
        self._output.execution_results.append(VmExecuteResponse.of(execution))
        block.metadata["execution_id"] = execution.execution_id
        if not execution.context_survived or execution.restored_from is not None:
            self._good.clear()
        if execution.succeeded:
            self._good.add((block.language, block.code.strip()))
        await self._listener.block_ran(index, execution)
        return Outcome(block.language, execution)

    async def _execute(self, index: int, choice: Choice) -> Execution:
        block = choice.block
        listeners = await self._listener.block_begins(index, block)
        metadata = {
            "round": block.metadata["round"],
            "kind": block.metadata.get("kind"),
            "confidence": block.execution_confidence,
        }
        if choice.question is not None:
            let_ask(self._runtime.hooks)
            metadata[QUESTION] = choice.question
        return await self._runtime.run(block.language, block.code, metadata, listeners)

    def _note(self, note: str) -> None:
        if note not in self._output.notes:
            self._output.notes.append(note)
