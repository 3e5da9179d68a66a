"""Registers: small replicated records, read and written linearizably (CASPaxos with one ballot per partition).

Read in this order: `key`, `ballot`, `record`, `quorum`, `tally` (pure), `store` (the protocol of one node's durable registers), `view`,
`messages`; `acceptor` with `record_cache` (a replica; `service` answers for it), `scatter` (asking many), `change` and `leader` (who
decides), `reader`, `registers` (what others call); `copying`, `mender` and `purge` (keeping replicas alike, and small).
docs/consistency.md says what it promises.
"""
