"""What is asked: the parts of a study, its plan of trials, and where each trial stands."""
