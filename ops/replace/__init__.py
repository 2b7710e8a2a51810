"""Module replacement: ``kpt.replace_modules`` puts kpt ops into a model that exists, ``kpt.restore_modules`` takes them out.

What is replaced of PyTorch's own is a table (``rules.py``), and of all else what has a form (``forms``) and was proven; how is
one line: a module keeps its identity and changes its class.
"""

from kpt.ops.replace.levels import optimize
from kpt.ops.replace.report import Change, Report, Skipped
from kpt.ops.replace.swap import replace_modules, restore_modules

__all__ = ["Change", "Report", "Skipped", "optimize", "replace_modules", "restore_modules"]
