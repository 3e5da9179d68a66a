"""Governance: the agreed layout, and who is allowed to vote under it.

Read in this order: `state` (what is agreed: the layout in force, the one being filled, their epoch), `stores` (which disk each node is
known to have), `belonging` (which cluster this node is of, remembered apart from its registers), `installed` (this node's copy of the
agreed state, as `LayoutView`), `attestation` (whether this node's own memory can be trusted), `founding` (who forms the first layout, and
when nobody may), `bootstrap` (how they agree on it), `governor` (plan, apply, finish, abort), `messages`.
"""
