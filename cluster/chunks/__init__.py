"""Chunks: immutable runs of bytes, named by the BLAKE3-256 of what is stored, kept on the replicas of their partition.

Read in this order: `store` (the protocol of one node's durable chunk store, which `node.storage` fulfils), `view` (what is needed of
the layout), `messages`, `listing`, `replica` (a node's answers), `spread` (who holds a copy), `hedge` (when a second is asked),
`chunks` (storing and reading chunks in the cluster, from any node).
"""
