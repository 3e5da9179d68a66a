"""Merkle trees over what a node holds, for finding out cheaply in what two replicas differ. Pure.

Read in this order: `digest_tree` (sums of digests by prefix), `identity` (what is summed: the digests and places of chunk references and of
registers), `descent` (how two nodes walk down to where they differ, a level a round trip), `bits` (sets of
partitions as they travel).
"""
