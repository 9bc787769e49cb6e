"""Frozen values that every layer shares. Rank 1: imports `errors` alone."""
