"""Membership: which nodes are there, and which of them seem to be alive (SWIM).

Read in this order: `member` (a record and which of two is the newer), `settings`, `health` (is it me who is slow?), `rumours`
(what is still to be told), `seeds` (whom to ask at first), `swim` (the machine: pure), `messages` (the wire), `service`
(`Membership`: runs the machine over the RPC layer). The reasons are in docs/decisions/membership.md.

Liveness only: who holds which data is the layout's affair, and no safety property rests on what is said here.
"""
