"""Nightly sweeps: the rule that compares nights, the difference between two, and its text."""
