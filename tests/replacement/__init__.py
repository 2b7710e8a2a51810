"""Whole models, replaced and restored: a table says how many of their modules become what, and what then serves a call.

``python -m tests.replacement`` writes the table anew, ``python -m tests.replacement --every`` looks at all that builds.
"""
