"""This machine: its processors, folders and processes."""
