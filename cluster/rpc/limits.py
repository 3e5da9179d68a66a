"""Every limit and tunable of the wire, with its reason. Nothing else in the package has a number of its own."""

from __future__ import annotations

PROTOCOL_VERSION = 1
"""What this release speaks."""
PROTOCOL_VERSION_MIN = 1
"""The oldest version that this release still understands."""

HEADER_LIMIT = 1024 * 1024
"""Bytes of a frame's header. A register's value and a list of a thousand entries fit; content belongs into the payload."""
PAYLOAD_LIMIT = 8 * 1024 * 1024
"""Bytes beside one message: the largest chunk (4 MiB) with room for whatever is added around it."""
PIECE_SIZE = 256 * 1024
"""A larger payload travels in pieces of this many bytes, so that a short frame waits for one piece at most. Smaller ones cost
throughput (a system call each), larger ones latency."""
INLINE_PAYLOAD = 64 * 1024
"""A payload up to this size is copied next to its header and sent with its neighbours in one write; above it is never copied."""
BULK_PAYLOAD = 64 * 1024
"""A request with a larger payload takes the peer's second connection, whose reader may be held back by memory limits."""
STREAMS_SENT = 4
"""Payloads sent in turns on one connection; more of them wait. Bounds what a receiver holds of unfinished payloads."""
STREAMS_RECEIVED = 8
"""Unfinished payloads accepted on one connection; a peer with more breaks the protocol (leaves room for cancelled ones)."""

STAGING_SIZE = 128 * 1024
"""The buffer that a connection receives into: a thousand small frames in one system call."""
STAGING_SIZE_GREETING = 2 * 1024
"""The same for a peer that has not proved itself yet."""
STAGING_SIZE_BETWEEN_PIECES = 4 * 1024
"""How much is read to find the next header in the middle of large payloads: what is read here has to be copied."""

WRITE_BUFFER_HIGH = 128 * 1024
"""Bytes in the transport's buffer above which frames stay in the outbox, where a short one can still overtake a piece."""
FLUSH_SIZE = 1024 * 1024
"""Bytes handed to the transport before other work of the event loop gets its turn."""
SEND_QUEUE_LIMIT = 16 * 1024 * 1024
"""Bytes waiting in one connection's outbox above which callers wait, and above which no further requests are read."""

HELD_LIMIT_CONNECTION = 16 * 1024 * 1024
"""Bytes of requests (payloads and headers) that handlers of one connection work on before it is no longer read."""
HELD_LIMIT_NODE = 64 * 1024 * 1024
"""The same for all connections of a node together. Replies are not counted: a node asked for each of them."""

HANDSHAKE_TIMEOUT_S = 5.0
"""From the connection to the welcome."""
GREETING_HEADER_LIMIT = 1024
"""Bytes of a header before the peer has proved itself."""
GREETINGS_LIMIT = 64
"""Incoming connections that have not proved themselves; a further one replaces the oldest of them."""
REFUSAL_TEXT_LIMIT = 400
"""Characters of the reason for a refusal."""

CONNECT_BACK_OFF_MIN_S = 0.05
CONNECT_BACK_OFF_MAX_S = 1.0
"""After a failed connection, calls fail at once for a time that doubles from the first to the second of these."""

DEADLINE_STEP_S = 0.01
"""Deadlines are met this exactly; all that fall into one step share a timer."""
DEADLINE_MAX_S = 3600.0
"""The longest deadline of a call."""
PING_TIMEOUT_S = 3.0
"""A connection on which a call has timed out in silence is pinged, and given up after so many more silent seconds."""
STOPPED_PING_S = 1.0
"""How often a node that does not read a connection for lack of memory sends a sign of life on it; well below `PING_TIMEOUT_S`."""
IDLE_PING_S = 30.0
"""An incoming connection that was silent for so long is pinged, and closed if that brings no sign of life."""
LOG_INTERVAL_S = 60.0
"""Refused and broken connections are logged at most this often for each kind of reason, with how many were left out."""
BUFFER_POOL_LIMIT = 32 * 1024 * 1024
"""Bytes of large payloads' buffers that are kept for use by the next ones, per node."""
