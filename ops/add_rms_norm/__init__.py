"""A residual addition and the root-mean-square norm of its sum."""
