"""What ``kpt_dsl`` finds in the entry-point group ``kpt.configs``: it asks for configs without importing this package."""

from autotune_db.lookup import choose
from kpt_dsl.problem import Problem
from kpt_dsl.space import Config
from kpt_dsl.targets import Target


def provider(problem: Problem, target: Target) -> tuple[Config, str]:
    """The config for a problem on a target, and where it comes from in words."""
    answer = choose(problem, target)
    return answer.config, answer.source
