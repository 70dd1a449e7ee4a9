"""Nightly sweeps: the rule that judges a night, the difference between nights, and its text."""
