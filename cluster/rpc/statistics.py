"""Counters of one node's wire, for metrics and status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RpcStatistics:
    """Totals since the start, except where it says *now*."""

    calls_sent: int = 0
    calls_expired: int = 0
    """Sent calls whose deadline passed without an answer."""
    calls_served: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    connections_out: int = 0
    """Open now, with the handshake done."""
    connections_in: int = 0
    """The same, of those that peers opened."""
    greetings: int = 0
    """Incoming connections now that have not proved themselves."""
    in_flight_out: int = 0
    """Calls sent and not answered now."""
    in_flight_in: int = 0
    """Calls that handlers work on now."""
    held_bytes: int = 0
    """Bytes of the requests that handlers work on now."""
    refused: int = 0
    """Handshakes that failed, on either side."""
    broken: int = 0
    """Connections closed because of bytes that are no protocol."""
