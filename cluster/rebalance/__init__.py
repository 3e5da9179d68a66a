"""Rebalance: moving data to where the layout says it belongs.

Read in this order: `copier` (a node fetches what it is due: as a new replica, or because it has forgotten), `tidier` (a node gives up
what is no longer its own, once the new holders have it).
"""
