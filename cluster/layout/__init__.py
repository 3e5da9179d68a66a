"""Which nodes hold what: the versioned, agreed list of nodes and, derived from it, each partition's preference list.

Everything here is pure: values in, values out. No clock, no randomness, no I/O; equal arguments give equal bytes on every
node. Who agrees on a layout, and how data follows it, is decided in `cluster.governance` and `cluster.rebalance`.

Read in this order:

* `ring`: from a key or a chunk's id to its partition;
* `layout`: nodes, replicas of a partition, preference lists, the form on the wire;
* `quota`: how many replicas each node ought to hold, given zones and weights;
* `assignment`: the fewest moves that reach the quotas;
* `leaders`: the order of the replicas, so that every node leads its part;
* `planner`: `plan_layout`, which puts the three above together;
* `report`: what a change means, for people and as JSON.
"""
