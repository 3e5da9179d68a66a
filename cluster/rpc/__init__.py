"""The wire: typed calls between nodes, many at once over few connections.

Read in this order: `message` (what travels; `codec` packs and checks it), `caller` and `service` (asking and answering, as the other
packages see them), `limits`, `frame` (bytes to frames and back; `buffer_pool` and `inbound_payload`: where payloads go), `handshake`
(who is there), `outbox` (what is sent next), `deadline`, `connection` (the above on one asyncio transport: `outgoing` asks, `incoming`
answers), `link` (a peer's connections), `node` (the whole); `statistics`, `quiet_log`.
The format is written down in docs/formats/wire.md.
"""
