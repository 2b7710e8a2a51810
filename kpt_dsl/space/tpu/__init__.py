"""The space of TPU kernels: its rules, and what configs ask of vector memory."""
