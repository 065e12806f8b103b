"""Runs experiments: resumes them, plans them, and writes the artifacts that `report` reads."""
