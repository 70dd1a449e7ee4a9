"""The page of a study: its sections, their sentences, and the folder it is written to."""
