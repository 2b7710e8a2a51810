"""A residual addition and the layer norm of its sum."""
