"""One training: its configuration, its run, its evaluation, and what its numbers come from."""
