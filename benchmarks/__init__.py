"""Measurements of this package: the suite, trainings, single scripts, and their results."""
