"""The NumPy run has nothing to compile: its report is its text."""

from typing import TYPE_CHECKING

from kpt_dsl.build import cache
from kpt_dsl.build.report import Report
from kpt_dsl.emit import emit

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target


def compile(instance: "Instance", target: "Target", config: "Config") -> Report:
    """Generate the source and say where it is."""
    source = emit(instance, target, config)
    entry = cache.Entry("source", source.digest)
    return Report(target.name, str(config), forms=entry.put({"source.py": source.text}))
