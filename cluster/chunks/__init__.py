"""Chunks: immutable runs of bytes, named by the BLAKE3-256 of what is stored, kept on the replicas of their partition.

Read in this order: `store` (the protocol of one node's durable chunk store, which `node.storage` fulfils), `view` (what is needed of the
layout), `messages`, `replica` (a node's answers), `chunks` (storing and reading chunks in the cluster, from any node).
"""
