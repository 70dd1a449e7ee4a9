"""Figures: one function per kind, from rows to a `Plot`: the figure, the frame that it draws, and its caption.

Replicates are faint, means are bold, bars are 95 % t intervals; an arm has one colour in every figure of its study.
Frames hold fractions; the axes show percent.  No pyplot, no global state.
"""
