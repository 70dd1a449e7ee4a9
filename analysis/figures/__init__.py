"""Figures, drawn from results with matplotlib."""
