"""Judging given labels from features: which are wrong, what they should be, and which images to label next.

Arrays in, arrays out: no files, no trial, and no image is looked at.
"""
