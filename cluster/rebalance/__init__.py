"""Rebalance: moving data to where the layout says it belongs.

Read in this order: `copier` (a node fetches what it is due: as a new replica, or because it has forgotten), `tidier` (a node gives up
what belongs elsewhere, once those who should hold it do: after a layout change, and what it took as a stand-in).
"""
