"""Tests, and what they stand on: real servers (`servers`) and a link that fails (`proxy`)."""
