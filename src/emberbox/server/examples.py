"""Examples in the OpenAPI document. A test sends each of them."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "VmExecuteRequest": {"agent_id": "ada", "language": "python", "code": "x = 41\nprint(x + 1)"},
    "ParseExecuteRequest": {
        "agent_id": "ada",
        "llm_response": "Run this:\n\n```python\nprint(6 * 7)\n```\n",
        "auto_execute": True,
        "auto_execute_threshold": 0.7,
    },
    "VmCreateRequest": {"vm_type": "minimal", "vm_name": "notebook", "agent_id": "ada", "timeout_seconds": 3600},
    "SnapshotCreateRequest": {"name": "before-the-upgrade", "description": "all tests pass"},
    "SessionCreateRequest": {"name": "build", "vm_type": "minimal", "memory_mb": 512, "agent_id": "ada"},
    "SessionCommand": {"command": "cd /tmp && pwd"},
    "ExecuteV2Request": {
        "agent_id": "ada",
        "language": "javascript",
        "code": "console.log([1, 2, 3].map(n => n * n))",
        "timeout_ms": 5000,
        "snapshot_strategy": "pre-execution",
    },
    "BatchRequest": {
        "agent_id": "ada",
        "execution_mode": "sequential",
        "code_blocks": [{"language": "python", "code": "x = 1"}, {"language": "python", "code": "print(x)"}],
    },
    "AllocateRequest": {"agent_id": "ada", "vm_config": {"memory_mb": 512, "vcpus": 1}},
    "RunCodeRequest": {"code": "6 * 7", "language": "python"},
    "CommandRequest": {"cmd": "git --version"},
    "RollbackV2Request": {"strategy": "selective", "paths": ["report.txt"]},
    "ApprovalAnswer": {"approve": True, "reason": "reads one file only"},
}


def add_examples(schema: dict[str, Any]) -> None:
    """Put the examples into an OpenAPI document."""
    schemas = schema["components"]["schemas"]
    for name, example in EXAMPLES.items():
        if name in schemas:
            schemas[name]["examples"] = [example]
