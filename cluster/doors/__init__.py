"""The doors out of the core: what is no pure value reaches `cluster` through one of these, or is in `cluster.peer.core.Doors` besides.

Read in this order: `clock` (time), `network` (streams between nodes), `offload` (CPU-heavy work off the event loop).
Each has a real version here or in `node`, and simulated and faulty versions in the tests. Disk-like stores are protocols next
to the code that uses them: `cluster.chunks.store`, `cluster.register.store`.
"""
