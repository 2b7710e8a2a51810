"""Config: a frozen, ordered, hashable mapping that survives JSON and processes."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpt_dsl.errors import ConfigError
from kpt_dsl.space import Config

VALUES = st.booleans() | st.integers() | st.text(max_size=8)
CONFIGS = st.dictionaries(st.text(max_size=8), VALUES, max_size=6).map(Config)


@given(CONFIGS)
def test_json_keeps_values_types_and_order(config: Config) -> None:
    back = Config.from_json(config.to_json())
    assert back == config
    assert list(back.items()) == list(config.items())


@given(CONFIGS)
def test_pickling_keeps_it(config: Config) -> None:
    assert pickle.loads(pickle.dumps(config)) == config


@given(CONFIGS)
def test_order_does_not_make_configs_differ(config: Config) -> None:
    turned = Config(dict(reversed(list(config.items()))))
    assert turned == config
    assert hash(turned) == hash(config)


def test_text_is_what_people_type() -> None:
    assert str(Config(block_M=128, num_warps=8, persistent=True)) == "block_M=128 num_warps=8 persistent=True"


def test_true_and_one_are_different_values() -> None:
    assert Config(group=1) != Config(group=True)


def test_override_keeps_the_place_and_leaves_the_original() -> None:
    config = Config(block_M=128, num_warps=8)
    assert str(config | {"block_M": 64, "group": 2}) == "block_M=64 num_warps=8 group=2"
    assert config["block_M"] == 128


def test_it_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        Config(block_M=128)["block_M"] = 64  # type: ignore[index]


@pytest.mark.parametrize("value", [1.5, None, (1,), [1]])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"knob 'block_M' is .*; a config maps names to an int, a bool or a string"):
        Config({"block_M": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("text", ["", "[1]", "block_M=128", "null", '{"block_M": 1.5}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_json(text)


def test_a_missing_knob_is_named() -> None:
    with pytest.raises(KeyError, match="no knob 'group' in config block_M=128"):
        Config(block_M=128)["group"]
