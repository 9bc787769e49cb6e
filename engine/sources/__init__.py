"""Where records come from. Rank 3: knows nothing of targets."""
