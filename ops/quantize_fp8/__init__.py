"""Quantisation to FP8."""
