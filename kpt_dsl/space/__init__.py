"""Configs, and the space of them that a kernel's IR, its target and its shapes leave open."""

from kpt_dsl.space.config import Config, Value
from kpt_dsl.space.space import PIPELINED, Rules, Space, Variant, space

__all__ = ["PIPELINED", "Config", "Rules", "Space", "Value", "Variant", "space"]
