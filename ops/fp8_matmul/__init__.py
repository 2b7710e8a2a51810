"""The FP8 matrix product."""
