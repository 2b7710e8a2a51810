"""A config: the values of a kernel's knobs, as one frozen record. Knows no kernel and no target."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping

from kpt_dsl.errors import ConfigError

Value = int | bool | str


def points(knobs: Mapping[str, Iterable[Value]]) -> Iterator[dict[str, Value]]:
    """Every way to give each knob one of its values; the last knob's change first."""
    return (dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values()))


class Config(Mapping[str, Value]):
    """An ordered, hashable mapping from knob to value: ``Config(block_M=128, num_warps=8)``.

    Equal configs have equal knobs and values, in any order; ``True`` and ``1`` differ. ``config | {"num_warps": 4}`` overrides.
    Raises ConfigError for a value that is not an int, a bool or a string.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Value] | None = None, /, **knobs: Value) -> None:
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"config is {values!r}; it maps the names of knobs to values: {{'num_warps': 4}}")
        merged = {**(values or {}), **knobs}
        for name, value in merged.items():
            if not isinstance(name, str) or not isinstance(value, Value):
                raise ConfigError(f"knob {name!r} is {value!r}; a config maps names to an int, a bool or a string")
        self._values = merged
        self._hash = hash(frozenset((name, type(value), value) for name, value in merged.items()))

    def __getitem__(self, name: str) -> Value:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"no knob {name!r} in config {self}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Config):
            return NotImplemented
        mine, theirs = self._values, other._values
        return mine == theirs and all(type(mine[name]) is type(theirs[name]) for name in mine)

    def __or__(self, other: Mapping[str, Value]) -> "Config":
        return Config({**self._values, **other})

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._values.items())

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def __reduce__(self) -> tuple[type["Config"], tuple[dict[str, Value]]]:
        return Config, (self._values,)

    def to_json(self) -> str:
        """The config as one JSON object, in order."""
        return json.dumps(self._values)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The config that ``to_json`` wrote. Raises ConfigError for other text."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"a config must be a JSON object, and {text[:80]!r} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"a config must be a JSON object, not {text[:80]!r}")
        return cls(values)
