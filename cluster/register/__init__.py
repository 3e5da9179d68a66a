"""Registers: small replicated records, read and written linearizably (CASPaxos with one ballot per partition)."""
