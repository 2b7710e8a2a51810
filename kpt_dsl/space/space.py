"""The search space of an instance on a target: its knobs, which points of it are legal, and the config to begin with.

A kernel with algorithm choices has one *variant* for each way to choose, and for each schedule that its target offers and it
has a form for; a config holds exactly the knobs of its own variant, so equal programs have equal configs. What the knobs are
is derived by the rules that the target names.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from kpt_dsl.errors import ConfigError, TargetError
from kpt_dsl.passes.halves import apart
from kpt_dsl.space.config import Config, Value, points
from kpt_dsl.space.facts import Facts, collect
from kpt_dsl.targets import Target

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance

Knobs = dict[str, tuple[Value, ...]]

PIPELINED = "pipelined"
"""The schedule that is left to the compiler, named where there is a choice."""


_LOOKED_AT = 1000
"""Legal configs that are compared where the rule for a first one leaves out what was asked for."""


class Rules(Protocol):
    """What the module named by ``target.rules`` defines, for one variant at a time (choices not included)."""

    def knobs(self, facts: Facts, target: Target) -> Knobs:
        """Knobs in order, each with the values worth trying in ascending order; none where a schedule does not apply."""

    def why_illegal(self, facts: Facts, target: Target, config: Config) -> str | None:
        """Why a config whose values are all among the knobs' cannot run, or None."""

    def first(self, facts: Facts, target: Target, knobs: Knobs) -> Config | None:
        """A good legal config by rule, or None where no point of the variant is legal."""

    def seconds(self, facts: Facts, target: Target, config: Config) -> float:
        """A rough model of how long a legal config takes: for ranking, not for the clock."""


@dataclass(frozen=True)
class Variant:
    """One way to make the kernel's algorithm choices and to schedule it, with the facts and knobs that follow from it."""

    choices: Config
    facts: Facts
    knobs: Knobs
    rules: Rules


class Space:
    """Every config worth trying of an instance on a target. Iterating gives the legal ones."""

    def __init__(self, instance: "Instance", target: Target) -> None:
        self.instance = instance
        self.target = target
        self._own = _rules(target, target.rules)
        self._schedules = [(name, _rules(target, module)) for name, module in target.schedules]

    @property
    def sample(self) -> "Instance":
        """An instance whose configs these are."""
        return self.instance

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The kernel's variants; the first takes the first option of every choice."""
        return tuple(self._variants(Config()))

    def _variants(self, choices: Config) -> Iterator[Variant]:
        kernel = self.instance.lower(choices)
        for name, options in kernel.choices:
            if name not in choices:
                for option in options:
                    assert isinstance(option, Value)  # the front end takes no other constants
                    yield from self._variants(Config({**choices, name: option}))
                return
        facts = self._facts(choices)
        others = [(name, rules, knobs) for name, rules in self._schedules if (knobs := rules.knobs(facts, self.target))]
        plain = choices | {"schedule": PIPELINED} if others else choices
        knobs = self._own.knobs(facts, self.target)
        if taken := choices.keys() & {*knobs, "schedule"}:
            name = f"{self.instance.kernel.name}: choice {min(taken)!r}"
            raise ConfigError(f"{name} is called as a knob of {self.target.name} is; give it a name of its own")
        yield Variant(plain, facts, knobs, self._own)
        for schedule, rules, knobs in others:
            yield Variant(choices | {"schedule": schedule}, facts, knobs, rules)

    def _facts(self, choices: Config) -> Facts:
        """What is known of the kernel under algorithm choices."""
        kernel = self.instance.lower(choices)
        return collect(apart(kernel) if self.target.lanes else kernel, self.instance.extents)

    @cached_property
    def knobs(self) -> Knobs:
        """Every knob of any variant with its values, algorithm choices first. Not every config has every knob."""
        found: dict[str, dict[Value, None]] = {}
        for variant in self.variants:
            for name, choice in variant.choices.items():
                found.setdefault(name, {})[choice] = None
        for variant in self.variants:
            for name, values in variant.knobs.items():
                found.setdefault(name, {}).update(dict.fromkeys(values))
        return {name: tuple(values) for name, values in found.items()}

    @cached_property
    def size(self) -> int:
        """How many points there are, legal or not."""
        return sum(math.prod(map(len, variant.knobs.values())) for variant in self.variants)

    def __iter__(self) -> Iterator[Config]:
        for variant in self.variants:
            for point in points(variant.knobs):
                config = variant.choices | point
                if variant.rules.why_illegal(variant.facts, self.target, config) is None:
                    yield config

    def canonical(self, values: Mapping[str, Value]) -> Config:
        """The values that matter under the choices among them, in the order of the space; what is missing stays missing."""
        variant = self._variant(values)
        return variant.choices | {name: values[name] for name in variant.knobs if name in values}

    def why_illegal(self, config: Mapping[str, Value]) -> str | None:
        """Why a config cannot run here, for a person to read; None when it can."""
        return self._why_not(config, asked=False)

    def _why_not(self, config: Mapping[str, Value], asked: bool) -> str | None:
        variant = self._variant(config)
        if reason := self._why_not_of(variant, config, asked):
            return reason
        expected = [*variant.choices, *variant.knobs]
        if missing := [name for name in expected if name not in config]:
            return f"{', '.join(missing)} missing; a config here has {', '.join(expected)}"
        return variant.rules.why_illegal(variant.facts, self.target, Config(config))

    def _why_not_of(self, variant: Variant, knobs: Mapping[str, Value], asked: bool) -> str | None:
        """Why some knobs are none of a variant, or cannot have these values in it. ``asked``: a caller wants these very ones,
        so that blocks may have lengths that are not worth trying."""
        expected = {name: (value,) for name, value in variant.choices.items()} | variant.knobs
        for name, value in knobs.items():
            if name not in expected:
                return self._why_unexpected(name, variant)
            any_power = asked and name in variant.facts.blocks
            if any_power and type(value) is int and value > 0 and value.bit_count() == 1:
                continue
            if not any(value == known and type(value) is type(known) for known in expected[name]):
                accepted = self.knobs[name] if name in variant.choices else expected[name]
                others = ", and other powers of two" if any_power else ""
                return f"{name} is {value!r}; accepted here are {', '.join(map(repr, accepted))}{others}"
        return None

    def overridden(self, config: Config, knobs: Mapping[str, Value]) -> Config:
        """A config with some knobs set by a caller: where ``config`` allows it, all others as they are there; else, as after
        another choice of algorithm, the first config by rule that has them. A block may be any power of two.

        Raises ConfigError for a knob that there is none of, a value that it cannot have, and where nothing legal has them.
        """
        wanted = Config(knobs)
        for whole in (wanted, config | wanted):
            if self._why_not(whole, asked=True) is None:
                return whole
        agreeing = [v for v in self.variants if self._why_not_of(v, wanted, asked=True) is None]
        if found := [first for variant in agreeing if (first := self._first_with(variant, wanted)) is not None]:
            return min(found, key=self.seconds)
        meant = next((v for v in self.variants if self._is_meant(v, wanted)), self._variant(wanted))
        reason = self._why_not_of(meant, wanted, asked=True)
        if reason is None:
            others = {name: values[0] for name, values in meant.knobs.items()}
            reason = self._why_not(meant.choices | others | wanted, asked=True)
        raise ConfigError(f"{self.instance} on {self.target.name}: config {wanted} is illegal: {reason}")

    @staticmethod
    def _is_meant(variant: Variant, wanted: Config) -> bool:
        """Whether a variant has all of some knobs, and none of its choices is another."""
        known = {*variant.choices, *variant.knobs} >= wanted.keys()
        return known and all(wanted.get(name, value) == value for name, value in variant.choices.items())

    def _first_with(self, variant: Variant, wanted: Config) -> Config | None:
        """The config of a variant to begin with, of those that have some knobs as given."""
        knobs = {name: (wanted[name],) if name in wanted else values for name, values in variant.knobs.items()}
        first = variant.rules.first(variant.facts, self.target, knobs)
        if first is not None and self._why_not(variant.choices | first | wanted, asked=True) is None:
            return variant.choices | first | wanted
        legal = (c for point in points(knobs) if self._why_not(c := variant.choices | point, asked=True) is None)
        return min(itertools.islice(legal, _LOOKED_AT), key=self.seconds, default=None)

    def check(self, config: Mapping[str, Value]) -> None:
        """Raises ConfigError with the reason when a config is illegal."""
        reason = self.why_illegal(config)
        if reason is not None:
            where = f"{self.instance.kernel.name} on {self.target.name}"
            raise ConfigError(f"{where}: config {Config(config)} is illegal: {reason}")

    @property
    def first(self) -> Config:
        """The config to begin with, by rule. Raises TargetError where no config is legal."""
        return self.firsts[0]

    @cached_property
    def firsts(self) -> tuple[Config, ...]:
        """The config to begin with, and behind it that of every other variant, the quickest by the model first."""
        return self._firsts()

    def _firsts(self) -> tuple[Config, ...]:
        candidates = [
            (variant, found)
            for variant in self.variants
            if (found := variant.rules.first(variant.facts, self.target, variant.knobs)) is not None
        ]
        if not candidates:
            variant = self.variants[0]
            least = Config({name: values[0] for name, values in variant.knobs.items()})
            why = variant.rules.why_illegal(variant.facts, self.target, least) or "it leaves no room"
            raise TargetError(f"no config of {self.instance} is legal on {self.target.name}; of {least}: {why}")
        candidates.sort(key=lambda c: c[0].rules.seconds(c[0].facts, self.target, c[1]))
        return tuple(variant.choices | config for variant, config in candidates)

    def seconds(self, config: Config) -> float:
        """A rough model of how long a legal config takes: good enough to rank candidates, not to predict a clock."""
        variant = self._variant(config)
        return variant.rules.seconds(variant.facts, self.target, config)

    def _variant(self, values: Mapping[str, Value]) -> Variant:
        """The variant that agrees with the most of the choices given, in their order."""
        found = self.variants
        for name in self.knobs:
            if name in values and (agreeing := tuple(v for v in found if v.choices.get(name) == values[name])):
                found = agreeing
        return found[0]

    def _why_unexpected(self, name: str, variant: Variant) -> str:
        if name in self.knobs:
            return f"{name} does nothing when {variant.choices}; leave it out"
        return f"there is no knob {name}; there are {', '.join(self.knobs)}"


@lru_cache(maxsize=512)
def space(instance: "Instance", target: Target) -> Space:
    """The search space of an instance on a target. Raises TargetError where the target's rules are missing."""
    return Space(instance, target)


def _rules(target: Target, module: str) -> Rules:
    try:
        rules: Rules = import_module(module)
        return rules
    except ImportError as error:
        raise TargetError(f"the space rules {module!r} of {target.name} cannot be imported: {error}") from error
