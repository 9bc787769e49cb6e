"""Real servers, a cutting proxy, processes of the engine, a comparison: for benchmarks and tests.

Tests import from here; nothing here, nor any benchmark, imports from the tests.
"""
