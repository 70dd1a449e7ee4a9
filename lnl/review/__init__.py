"""From a user's images and labels to tables of suspect labels, a page to review them, and corrected labels."""
