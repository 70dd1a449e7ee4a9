"""Trials on a Ray cluster: the run, its queue, its workers, and trackers."""
