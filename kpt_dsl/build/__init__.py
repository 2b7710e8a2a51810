"""Compiling a kernel for a target, present or not: one builder module a backend, reports kept on disk.

A builder module has one function, ``compile(instance, target, config) -> Report``. Ours are ``kpt_dsl.build.<backend>``; a
package adds its own through an entry point of the group ``kpt.builders`` named like the ``backend`` of its targets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kpt_dsl.build.report import Report
from kpt_dsl.errors import TargetError
from kpt_dsl.extensions import entry_points

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

__all__ = ["Report", "compile"]

_OWN = ("triton", "pallas", "numpy")


def compile(instance: "Instance", target: "Target", config: "Config") -> Report:
    """Compile an instance for a target under a config, and report what it takes. No device is needed.

    Raises CompileError where the compiler refuses or the result cannot run on the target, ConfigError for a config that does
    not fit the kernel, TargetError where nothing compiles for the target, MissingPackageError where the compiler is missing.
    """
    report: Report = _builder(target.backend).compile(instance, target, config)
    return report


def _builder(backend: str) -> Any:
    if backend in _OWN:
        return import_module(f"kpt_dsl.build.{backend}")
    for found in entry_points(group="kpt.builders", name=backend):
        return found.load()
    raise TargetError(f"nothing compiles for backend {backend!r}: kpt compiles for {', '.join(_OWN)}, and no installed "
                      f"package offers an entry point kpt.builders:{backend}")  # fmt: skip
