"""Replication groups and their migrations: the state tables, the registry, the store. Rank 2."""
