"""Pallas source, for TPUs."""
