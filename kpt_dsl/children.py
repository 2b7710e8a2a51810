"""Processes of Python that do work for this one: they import what it imports, not what merely lies where it was started.

A child that found modules in the current folder would run whatever a download or another user put there under a common name.
So this package and its neighbours are the parent's very own, and the folders that the user's modules are in come last.
"""

import json
import os
import sys
from collections.abc import Sequence

_BEGIN = """
import importlib.util, json, sys
packages, path, code = json.loads(sys.argv.pop())
sys.path += [folder for folder in path if folder not in sys.path]
for name, file, folders in packages:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
exec(code)
"""


def command(code: str, packages: Sequence[str]) -> list[str]:
    """The command line of a process that runs ``code``; it is started with ``environment``.

    ``packages``: names of packages that must be this process's, each after those that it imports.
    """
    specs = [sys.modules[name].__spec__ for name in packages if name in sys.modules]
    found = [(spec.name, spec.origin, list(spec.submodule_search_locations or ())) for spec in specs if spec]
    return [sys.executable, "-P", "-c", _BEGIN, json.dumps([found, _path(), code])]


def environment() -> dict[str, str]:
    """This process's, where no part of PYTHONPATH stands for the current folder: an empty one does."""
    found = dict(os.environ)
    kept = [folder for folder in found.pop("PYTHONPATH", "").split(os.pathsep) if folder not in ("", ".")]
    return found | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {})


def _path() -> list[str]:
    """Where this process finds modules; the current folder by its name."""
    try:
        here = [os.getcwd()]  # noqa: PTH109 (a Path of a folder that was deleted raises as well)
    except OSError:
        here = []
    return [folder for folder in sys.path if folder] + (here if "" in sys.path else [])
