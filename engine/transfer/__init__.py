"""One source shard's way into the target. Rank 4: meets both sources and targets."""
