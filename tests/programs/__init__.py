"""A generator of whole kernels: hypothesis draws their text, every backend runs them, and Python says what they mean.

``python -m tests.programs --programs 2000`` runs it for as long as one likes; ``test_programs.py`` is its share of CI.
"""
