"""A linear layer with its activation."""
