"""Clients of a server by their public name; `emberbox.clients` has them."""

from __future__ import annotations

from emberbox.clients.vm_execution import VmExecutionClient, VmExecutionClientSync

__all__ = ["VmExecutionClient", "VmExecutionClientSync"]
