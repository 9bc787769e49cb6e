"""Slow, obvious models of what the native core does fast; tests compare the two."""
