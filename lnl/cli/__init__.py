"""The command line: a file for each command, what they share, and what they print."""
