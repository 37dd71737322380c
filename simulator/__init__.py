"""Replays a Program under a CostProfile in SimPy and returns a Timeline."""
