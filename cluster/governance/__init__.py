"""Governance: the agreed layout, and who is allowed to vote under it.

Read in this order: `state` (what is agreed: the layout in force, the one being filled, their epoch), `stores` (which disk each node is
known to have), `installed` (this node's copy of the agreed state, as `LayoutView`), `attestation` (whether this node's own memory can
be trusted), `bootstrap` (the first layout), `governor` (plan, apply, finish, abort), `messages`.
"""
