"""Trains a small GPT on real text with kpt's ops and with PyTorch's, side by side: ``python -m training --help``."""
