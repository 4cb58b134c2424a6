"""Wire and domain types. Everything that crosses a border (SDK, CLI, HTTP, files) is one of these.

Units: `*_ms` are milliseconds, `*_mb` are MiB, `timeout*` without a suffix are seconds, offsets count characters.
"""

from __future__ import annotations

from emberbox.models.base import (
    ALL_LANGUAGES,
    Language,
    Model,
    TerminationReason,
)
from emberbox.models.configuration import (
    HistoryConfig,
    LanguageConfig,
    MachineLimits,
    ResourceLimits,
    SecuritySettings,
    VmExecutionConfig,
)
from emberbox.models.execution import (
    BlockError,
    CommandResult,
    Execution,
    ExecutionError,
    FileChange,
    Logs,
    ParseExecuteRequest,
    ParseExecuteResponse,
    Result,
    VmExecuteRequest,
    VmExecuteResponse,
)
from emberbox.models.extraction import (
    CodeBlock,
    ExecutionIntent,
    Finding,
)
from emberbox.models.history import (
    BadLink,
    CommandHistoryEntry,
    HistoryQueryRequest,
    HistoryQueryResponse,
    HistoryState,
    HistoryVerification,
)
from emberbox.models.hooks import (
    ApprovalRequest,
    ApprovalResponse,
    DecisionRecord,
    HooksConfig,
    HookStage,
    HookUse,
    Verdict,
)
from emberbox.models.policy import (
    PolicyConfig,
    PolicySwitches,
    RuleConfig,
)
from emberbox.models.sandboxes import (
    ContextInfo,
    EntryInfo,
    FileDiff,
    PoolStatus,
    ProcessInfo,
    Recovery,
    RollbackRequest,
    RollbackResponse,
    SandboxInfo,
    SandboxMetrics,
    SnapshotInfo,
    SnapshotKind,
    SnapshotStrategy,
)

__all__ = [
    "ALL_LANGUAGES",
    "ApprovalRequest",
    "ApprovalResponse",
    "BadLink",
    "BlockError",
    "CodeBlock",
    "CommandHistoryEntry",
    "CommandResult",
    "ContextInfo",
    "DecisionRecord",
    "EntryInfo",
    "Execution",
    "ExecutionError",
    "ExecutionIntent",
    "FileChange",
    "FileDiff",
    "Finding",
    "HistoryConfig",
    "HistoryQueryRequest",
    "HistoryQueryResponse",
    "HistoryState",
    "HistoryVerification",
    "HookStage",
    "HookUse",
    "HooksConfig",
    "Language",
    "LanguageConfig",
    "Logs",
    "MachineLimits",
    "Model",
    "ParseExecuteRequest",
    "ParseExecuteResponse",
    "PolicyConfig",
    "PolicySwitches",
    "PoolStatus",
    "ProcessInfo",
    "Recovery",
    "ResourceLimits",
    "Result",
    "RollbackRequest",
    "RollbackResponse",
    "RuleConfig",
    "SandboxInfo",
    "SandboxMetrics",
    "SecuritySettings",
    "SnapshotInfo",
    "SnapshotKind",
    "SnapshotStrategy",
    "TerminationReason",
    "Verdict",
    "VmExecuteRequest",
    "VmExecuteResponse",
    "VmExecutionConfig",
]
