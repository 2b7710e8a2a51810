"""What texts follow from: IR, facts, a target and a config. Extents that vary do not reach emitters for GPUs."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from kpt.ops import registry
from kpt_dsl import targets
from kpt_dsl.classes import options
from kpt_dsl.emit import OWN, Source, emit, emitter
from kpt_dsl.extents import Extents
from kpt_dsl.instance import Instance
from kpt_dsl.specialisation import Specialisation

VARYING = 7777
"""An extent that no other number is taken for."""

OPS: dict[str, tuple[dict[str, int], dict[str, object]]] = {
    "flash_attention": ({"B": VARYING, "H": 8, "G": 2, "M": VARYING, "N": VARYING, "D": 64}, {"causal": True}),
    "rms_norm": ({"M": VARYING, "N": 2048}, {}),
    "linear_act": ({"M": VARYING, "N": 2048, "K": 2048}, {"activation": "silu"}),
}


def within(value: Any) -> Iterator[Any]:
    """A value and all that can be reached from it."""
    yield value
    if is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        parts = [*value, *value.values()]
    else:
        parts = list(value) if isinstance(value, tuple | list | frozenset | set) else []
    for part in parts:
        yield from within(part)


@pytest.mark.parametrize("backend", OWN)
def test_emitters_are_given_ir_facts_target_and_config(backend: str) -> None:
    module = emitter(backend)
    assert tuple(inspect.signature(module.emit).parameters) == ("kernel", "known", "target", "config")
    assert tuple(inspect.signature(module.facts).parameters) == ("kernel", "extents", "config")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-a100", "amd-mi300x"])
def test_no_extent_that_varies_reaches_an_emitter_for_gpus(target: str, op: str) -> None:
    chip, module = targets.get(target), emitter("triton")
    (dims, flags), given = OPS[op], []
    assert not chip.exact_blocks
    with patch.object(module, "emit", lambda *arguments: given.append(arguments) or Source("triton", "", "")):
        for instance in registry.get(op).instances(dims, "bf16", **flags):
            for config in options(instance, chip).firsts:
                emit(instance, chip, config)
    assert given
    for reached in within(given):
        assert not isinstance(reached, Extents | Instance | Specialisation)
        assert type(reached) is not int or reached % VARYING or not reached, reached


def test_a_package_brings_an_emitter_of_its_own() -> None:
    (instance,) = registry.get("rms_norm").instances({"M": 40, "N": 24}, "f32")
    module = SimpleNamespace(
        facts=lambda kernel, extents, config: extents.dim("N"),
        emit=lambda kernel, known, target, config: Source(target.backend, kernel.name, f"{known} {config}"),
    )
    strange = SimpleNamespace(backend="strange")
    found = {("kpt.emitters", "strange"): [SimpleNamespace(load=lambda: module)]}
    with patch("kpt_dsl.emit.entry_points", lambda group, name: found[group, name]):
        assert emit(instance, strange, {}).text == "24 {}"  # type: ignore[arg-type]
