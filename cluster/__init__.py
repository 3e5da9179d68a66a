"""How many nodes behave as one."""
