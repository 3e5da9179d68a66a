"""What one daemon keeps on its disk.

`chunk_store` holds chunks and their references in an append-only log with a SQLite index; read it first, its docstring gives the
order of the rest. `chunk_expiry` and `scrub` are its background jobs. `disk` is the door to the file system, `lanes` that to the
threads. `register_store` holds the acceptors' registers. The formats have pages in `docs/formats`.
"""
