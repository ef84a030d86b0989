"""Trainings on data that needs no download, each with its figures in `benchmarks/results/`."""
