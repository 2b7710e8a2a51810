"""Gluon source, for chips that reward a schedule of their own; Gluon is Triton's lower language, and shares its modules."""
