"""Clients of a server by their public name; `emberbox.clients` has them."""

from __future__ import annotations

from emberbox.clients._sync import VmExecutionClientSync
from emberbox.clients.vm_execution import VmExecutionClient

__all__ = ["VmExecutionClient", "VmExecutionClientSync"]
