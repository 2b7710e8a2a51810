"""Measurements on a GPU against the best peers, by command: ``python -m benchmarks --help``. Nothing here is a test."""
