"""Whole migrations between real servers, over every pair that the machine has."""
