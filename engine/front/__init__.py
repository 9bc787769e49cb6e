"""The thin front: ElastiCache's operations on our groups. Rank 6."""
