"""Tasks: an agent's work from its first row to its answer."""
