"""Governance's messages. A state travels packed (`LayoutState.pack`)."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.rpc.message import Request, message


@message
@dataclass(frozen=True, slots=True)
class State:
    """``state`` is empty when the node has none."""

    state: bytes


@message("governance.get-state", reply=State)
@dataclass(frozen=True, slots=True)
class GetState(Request[State]):
    """The state that the receiver has installed."""


@message
@dataclass(frozen=True, slots=True)
class Installed:
    epoch: int


@message("governance.install", reply=Installed)
@dataclass(frozen=True, slots=True)
class Install(Request[Installed]):
    """A state that is known to be decided."""

    state: bytes


@message("governance.pledge", reply=State)
@dataclass(frozen=True, slots=True)
class Pledge(Request[State]):
    """Asks the receiver to pledge itself to a first state; the answer is the state it is pledged to, this one or an earlier."""

    state: bytes


@message
@dataclass(frozen=True, slots=True)
class Attested:
    """What the receiver remembered of the sender before it asked (zero bytes and 0 for nothing), and its own store and boot."""

    store: bytes
    boot: int
    run: bytes
    own_store: bytes
    own_boot: int
    own_run: bytes


@message("governance.attest", reply=Attested)
@dataclass(frozen=True, slots=True)
class Attest(Request[Attested]):
    """The sender announces its store and boot. The receiver remembers them, durably, before it answers."""

    store: bytes
    boot: int
    run: bytes


@message
@dataclass(frozen=True, slots=True)
class FillProgress:
    """How far a node has copied what the next layout gives it. ``partitions_done`` of ``partitions``; bytes of chunks copied;
    ``epoch`` is the one it is copying for, and ``error`` why it last had to wait (empty: nothing)."""

    epoch: int
    partitions: int
    partitions_done: int
    chunks: int
    bytes: int
    error: str


@message("governance.get-fill", reply=FillProgress)
@dataclass(frozen=True, slots=True)
class GetFill(Request[FillProgress]):
    """How far the receiver has copied."""
