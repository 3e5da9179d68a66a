"""Listings of chunks that fit a message, however many references a chunk has. Owns no state.

Equal pieces of content are one chunk with a reference for each use: an image stored a hundred times, a terabyte of one byte. A listing
names every chunk, but holds no more references than fit; whoever needs the others asks for them (`whole`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cluster.chunks.messages import GetReferences, ListedChunk, ListedReference
from cluster.rpc.caller import Caller

REFERENCES_LIMIT = 16 * 1024
"""References in one message: some 350 KiB of the 1 MiB that a header may have."""

DEADLINE_S = 10.0
"""For one message of further references."""


def fitted(chunks: Iterable[ListedChunk]) -> tuple[ListedChunk, ...]:
    """The same chunks; references past `REFERENCES_LIMIT` are left out, and their chunks marked."""
    room = REFERENCES_LIMIT
    found: list[ListedChunk] = []
    for listed in chunks:
        if len(listed.references) > room:
            found.append(replace(listed, references=listed.references[:room], more=True))
        else:
            found.append(listed)
        room = max(0, room - len(listed.references))
    return tuple(found)


async def whole(caller: Caller, name: str, listed: ListedChunk) -> ListedChunk:
    """A chunk as ``name`` listed it, with all its references. Raises what the peer or the wire raises."""
    references: list[ListedReference] = list(listed.references)
    more = listed.more
    while more:
        after = references[-1].referrer if references else b""
        reply = await caller.call(name, GetReferences(listed.chunk, after), deadline_s=DEADLINE_S)
        references += reply.message.references
        more = reply.message.more
    return replace(listed, references=tuple(references), more=False) if listed.more else listed
