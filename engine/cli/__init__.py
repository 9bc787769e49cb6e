"""The command line: one file a command, and the display. Rank 7.

Typer is imported by every run, rich only where there is a terminal to draw on, and what a verb
works with only once its options have been understood: the CPU of a start counts as the engine's.
"""
