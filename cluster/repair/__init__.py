"""Repair: finding out what replicas lack, and mending it (docs/decisions/repair.md).

Read in this order: `settings`, `messages`; finding: `sharing` (what two nodes both hold), `comparison` (one look at one peer), `suspicion`
(what two looks found), `anti_entropy` (one peer after the other), `nudger` (what reads met); mending, each node its own disk: `judge`
(whether a reference is still needed), `budget` (what repair may take), `chunk_mender`, `register_queue`; then `answers` (to the peers),
`status` (how it goes in the whole cluster) and `repair`, which puts it together.
"""
