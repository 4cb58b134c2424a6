"""The life of a machine as a state machine."""

from __future__ import annotations

from emberbox.machines.contract import Machine, MachineFactory, MachineState, next_states
from emberbox.machines.gvisor import GvisorFactory
from emberbox.machines.gvisor.machine import GvisorMachine


def test_every_state_has_its_arrows() -> None:
    assert {state: next_states(state) for state in MachineState} == {
        MachineState.STARTING: {MachineState.PREPARED, MachineState.RUNNING, MachineState.DEAD},
        MachineState.PREPARED: {MachineState.RUNNING, MachineState.DEAD},
        MachineState.RUNNING: {MachineState.DEAD},
        MachineState.DEAD: set(),
    }


def test_death_can_be_reached_from_everywhere_and_is_final() -> None:
    for state in MachineState:
        assert state is MachineState.DEAD or MachineState.DEAD in next_states(state)
    assert not next_states(MachineState.DEAD)


def test_the_back_end_fulfils_the_contract() -> None:
    """A static check as well: mypy reads these two assignments."""
    machine: type[Machine] = GvisorMachine
    factory: type[MachineFactory] = GvisorFactory
    assert machine.backend == factory.backend == "gvisor"
