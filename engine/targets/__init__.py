"""Where records go to. Rank 3: knows nothing of sources."""
