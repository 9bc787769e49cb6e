"""One part at a time, against slow, obvious references."""
