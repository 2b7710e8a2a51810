"""Triton source, for GPUs."""
