"""Lanes that are parted without any need."""

from __future__ import annotations

import pytest

from engine.transfer import lane_process_split, machine_cpu

PARTED = " of a core over "
"""What an event says when lanes are parted."""


def part_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as lanes follow, whatever CPU they use, and again until each is alone."""
    for name, value in {
        "BUSY": -1.0,
        "WINDOW_SECONDS": 0.5,
        "CATCHING_UP_SECONDS": 1.0,
        "APART_SECONDS": 0.5,
        "SPARE": -1.0,
        "_SAMPLE_SECONDS": 0.1,
    }.items():
        monkeypatch.setattr(lane_process_split, name, value)
    monkeypatch.setattr(machine_cpu, "cpus", lambda: 64)
