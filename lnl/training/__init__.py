"""What methods are made of: data streams, the task, the learner, and updates that several methods share."""
