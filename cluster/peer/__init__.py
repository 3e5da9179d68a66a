"""One node's cluster core, put together: `settings` (what it is told), `core` (the parts and their lives), `jobs` (its background work, for
people). Runs unchanged in `node.daemon` and in a simulator: everything outside comes in through the doors."""
