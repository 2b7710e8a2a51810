"""Names from outside a kernel's text are followed: a call sees what they mean now, and its hash and caches follow."""

import math
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpt_dsl as kd
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.printer import format_kernel
from kpt_dsl.runtime.binding import bind
from tests.language.snippets import kernel

ONE = np.ones(3, np.float32)

OTHER = types.ModuleType("other")
OTHER.FACTOR = 0.5  # type: ignore[attr-defined]

TEXT = """
import math
import settings

TABLE = [2.0, 5.0]
BY_NAME = {{"a": 2.0, "b": (3.0, [4.0])}}
KIND = kd.f32

@kd.function
def scaled(x):
    return x * FACTOR

@kd.function
def twice_scaled(x):
    return scaled(x) + scaled(x)

@kd.function
def times(x, by=2.0):
    return x * by

HELPERS = {{"one": scaled, "other": double}}

def number():
    return FACTOR + 1

def nested():
    return [number() for _ in range(2)][0]

def of_settings():
    return settings.FACTOR

@kd.kernel(x="N", y="N")
def snippet(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = {value}
"""


@pytest.fixture
def settings() -> Any:
    module = types.ModuleType("settings")
    module.FACTOR = 3.0  # type: ignore[attr-defined]
    sys.modules["settings"] = module
    yield module
    del sys.modules["settings"]


def made(folder: Path, value: str) -> tuple[Kernel, dict[str, Any]]:
    """A kernel that stores ``value``, and the globals of its module."""
    found = kernel(folder, TEXT.format(value=value))
    return found, found.fn.__globals__


def result(found: Kernel) -> float:
    y = np.zeros_like(ONE)
    found(ONE, y)
    assert (y == y[0]).all()
    return float(y[0])


def again(name: str, body: str) -> Callable[[dict[str, Any]], None]:
    """Defines a helper again, as a notebook does whose cell is run again."""

    def change(space: dict[str, Any]) -> None:
        folder = Path(space["__file__"]).parent
        other = kernel(folder, TEXT.format(value="x[n]") + f"\n@kd.function\ndef {name}(x):\n    return {body}\n")
        space[name] = other.fn.__globals__[name]

    return change


def to(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda space: space.update(values)


def in_settings(value: float) -> Callable[[dict[str, Any]], None]:
    return lambda space: setattr(space["settings"], "FACTOR", value)


# what is stored, what it is at first, a change, what it is then; FACTOR is 3
FOLLOWED: dict[str, tuple[str, float, Callable[[dict[str, Any]], None], float]] = {
    "global": ("x[n] * FACTOR", 3, to(FACTOR=4.0), 4),
    "global of another type": ("x[n] * (FACTOR // 2)", 1, to(FACTOR=4), 2),
    "global that decides": ("x[n] if FACTOR == 3.0 else 0.0", 1, to(FACTOR=None), 0),
    "dtype": ("(x[n] * 1.001).to(KIND).to(kd.f32)", 1.001, to(KIND=kd.bf16), 1),
    "helper's global": ("scaled(x[n])", 3, to(FACTOR=5.0), 5),
    "helper's helper's global": ("twice_scaled(x[n])", 6, to(FACTOR=5.0), 10),
    "helper's helper": ("twice_scaled(x[n])", 6, again("scaled", "x * 7"), 14),
    "module's attribute": ("x[n] * settings.FACTOR", 3, in_settings(7.0), 7),
    "module itself": ("x[n] * settings.FACTOR", 3, to(settings=OTHER), 0.5),
    "item of a list": ("x[n] * TABLE[1]", 5, lambda space: space["TABLE"].__setitem__(1, 6.0), 6),
    "list": ("x[n] * TABLE[1]", 5, to(TABLE=[1.0, 8.0]), 8),
    "deep in a dictionary": ('x[n] * BY_NAME["b"][1][0]', 4, lambda space: space["BY_NAME"]["b"][1].__setitem__(0, 9.0), 9),
    "helper in a dictionary": ('HELPERS["one"](x[n])', 3, lambda space: space["HELPERS"].update(one=space["double"]), 2),
    "global of a helper in a dictionary": ('HELPERS["one"](x[n])', 3, to(FACTOR=6.0), 6),
    "python function": ("x[n] * number()", 4, to(number=lambda: 11.0), 11),
    "python function's global": ("x[n] * number()", 4, to(FACTOR=9.0), 10),
    "python function's function's global": ("x[n] * nested()", 4, to(FACTOR=9.0), 10),
    "python function's module": ("x[n] * of_settings()", 3, in_settings(8.0), 8),
    "built-in function": ("x[n] * abs(-2)", 2, to(abs=lambda _: 5), 5),
    "kd's function": ("kd.maximum(x[n], 2.0) * FACTOR", 6, to(FACTOR=1), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_change_is_seen(name: str, tmp_path: Path, settings: Any) -> None:
    value, before, change, after = FOLLOWED[name]
    found, space = made(tmp_path, value)
    assert result(found) == pytest.approx(before)
    first = found.source_hash
    kept = bind(found, {"x": ONE, "y": np.zeros_like(ONE)})[0]
    change(space)
    assert result(found) == pytest.approx(after)
    assert found.source_hash != first
    now = bind(found, {"x": ONE, "y": np.zeros_like(ONE)})[0]
    assert now != kept and kept.specialisation.meaning.hash == first


def test_a_change_back_gives_the_first_hash(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "scaled(x[n])")
    first = found.source_hash
    space["FACTOR"] = 4.0
    assert found.source_hash != first
    space["FACTOR"] = 6.0 / 2
    assert found.source_hash == first and result(found) == 3


def test_what_does_not_change_costs_no_second_look(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "twice_scaled(x[n]) * TABLE[0]")
    now = found.now()
    space["unrelated"] = 1
    assert found.now() is now


@pytest.mark.parametrize(
    ("first", "second"), [(2, 2.0), (2.0, 2), (1, True), (True, 1.0), (0.0, -0.0), ((1,), (True,)), ([1], [1.0])]
)
def test_values_that_python_takes_for_equal_differ(first: Any, second: Any, tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "x[n] if FACTOR else x[n]")
    space["FACTOR"] = first
    before = found.now()
    space["FACTOR"] = second
    assert found.now() != before and found.now().hash != before.hash


def test_a_not_a_number_is_itself(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "x[n] * FACTOR")
    space["FACTOR"] = float("nan")
    before = found.now()
    space["FACTOR"] = float("nan")
    assert found.now() == before


def test_minus_zero_is_followed(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "1.0 / (x[n] * FACTOR)")
    space["FACTOR"] = 0.0
    with np.errstate(divide="ignore"):
        assert result(found) == math.inf
        space["FACTOR"] = -0.0
        assert result(found) == -math.inf


def test_an_instance_keeps_what_it_was_bound_with(tmp_path: Path, settings: Any) -> None:
    """It is lowered when that is asked for, maybe after a change."""
    found, space = made(tmp_path, "scaled(x[n]) * TABLE[0]")
    instance = Instance.of_shapes(found, {"N": 3}, {"x": "f32", "y": "f32"})
    space["FACTOR"], space["TABLE"][0] = 100.0, 100.0
    assert "100" not in format_kernel(instance.lower())
    assert "100" in format_kernel(Instance.of_shapes(found, {"N": 3}, {"x": "f32", "y": "f32"}).lower())
    assert "100" not in format_kernel(instance.with_dims(N=4).lower())
    assert "100" not in format_kernel(instance.with_dims().lower())


def test_a_name_that_is_gone_is_named(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "scaled(x[n])")
    result(found)
    del space["FACTOR"]
    for _ in range(2):
        with pytest.raises(kd.KernelError, match=r"FACTOR is not defined\n.*return x \* FACTOR"):
            result(found)
    space["FACTOR"] = 2.0
    assert result(found) == 2


def test_an_attribute_that_is_gone_is_named(tmp_path: Path, settings: Any) -> None:
    found, _ = made(tmp_path, "x[n] * settings.FACTOR")
    result(found)
    del settings.FACTOR
    with pytest.raises(kd.KernelError, match="settings has no FACTOR"):
        result(found)


def test_a_module_that_makes_its_attributes_is_followed(tmp_path: Path, settings: Any) -> None:
    del settings.FACTOR
    values = {"FACTOR": 2.0}
    settings.__getattr__ = lambda name: values[name]
    found, _ = made(tmp_path, "x[n] * settings.FACTOR")
    assert result(found) == 2
    values["FACTOR"] = 3.0
    assert result(found) == 3


def test_closures_are_followed(tmp_path: Path, settings: Any) -> None:
    text = """
def make():
    inside = 2.0
    @kd.function
    def by(x):
        return x * inside
    @kd.kernel(x="N", y="N")
    def snippet(x: kd.In, y: kd.Out) -> None:
        for n in kd.parallel(kd.tile("N")):
            y[n] = by(x[n]) + inside
    def change(value):
        nonlocal inside
        inside = value
    return snippet, change

snippet, change = make()
"""
    found = kernel(tmp_path, text)
    assert result(found) == 4
    found.fn.__globals__["change"](3.0)
    assert result(found) == 6


def test_a_static_function_is_followed(tmp_path: Path) -> None:
    text = """
@kd.function
def by(x):
    return x * FACTOR

@kd.kernel(x="N", y="N")
def snippet(x: kd.In, y: kd.Out, how: kd.Static) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = how(x[n]) if how is by else 0.0
"""
    found = kernel(tmp_path, text)
    space, y = found.fn.__globals__, np.zeros_like(ONE)
    by = space["by"]
    bound = found.bind(ONE, y, by)
    first = bind(found, bound)[0]
    found(ONE, y, by)
    assert y[0] == 3
    space["FACTOR"] = 4.0
    found(ONE, y, by)
    assert y[0] == 4
    assert bind(found, bound)[0] != first and first.specialisation.functions["how"] != by.now()
    space["FACTOR"] = 3.0
    assert bind(found, bound)[0] == first


def test_functions_that_are_told_apart_by_their_names_only(tmp_path: Path, settings: Any) -> None:
    """One helper under two names: which name means which is part of what a kernel means."""
    found, space = made(tmp_path, "first(x[n]) + second(x[n]) * 10 + third(x[n]) * 100")
    one, two = space["double"], space["times"]
    space.update(first=one, second=two, third=one)
    before = found.source_hash
    space.update(third=two)
    assert found.source_hash != before


def test_a_helpers_defaults_are_its_own(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "times(x[n])")
    space["by"] = 100.0
    assert result(found) == 2


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.ones(3), "ndarray"), (types.SimpleNamespace(), "SimpleNamespace"), (type("Mine", (), {}), "the class Mine"),
        ({"a": [np.ones(3)]}, "dict"), (type("Calls", (), {"__call__": lambda self: 1})(), "Calls"),
    ],
)  # fmt: skip
def test_what_may_change_unseen_is_refused(value: Any, kind: str, tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "x[n] * (1.0 if FACTOR else 2.0)")
    space["FACTOR"] = value
    with pytest.raises(kd.KernelError, match=rf"FACTOR is .*{kind}.*may change unseen(.|\n)*pass arrays as arguments"):
        result(found)
    found, space = made(tmp_path, "x[n] * nested()")
    space["FACTOR"] = value
    with pytest.raises(kd.KernelError, match="nested is a Python function that reads what cannot be followed"):
        result(found)


def test_one_that_is_only_named_is_no_harm(tmp_path: Path, settings: Any) -> None:
    found, space = made(tmp_path, "x[n] if True else UNUSED[0]")
    space["UNUSED"] = np.ones(3)
    assert result(found) == 1


def test_what_a_kernel_assigns_is_its_own(tmp_path: Path, settings: Any) -> None:
    """As in Python: a global of the same name is never read."""
    text = TEXT.format(value="x[n]").replace(
        "        y[n] = x[n]", "        FACTOR = FACTOR + x[n]\n        y[n] = FACTOR"
    )
    with pytest.raises(
        kd.KernelError, match=r"FACTOR has no value here(.|\n)*FACTOR = FACTOR \+ x\[n\](.|\n)*everywhere in it"
    ):
        result(kernel(tmp_path, text))


def test_an_alias_of_a_module_is_written_out(tmp_path: Path, settings: Any) -> None:
    text = TEXT.format(value="x[n]").replace(
        "        y[n] = x[n]", "        s = settings\n        y[n] = x[n] * s.FACTOR"
    )
    with pytest.raises(kd.KernelError, match="write out the name by which settings was imported"):
        result(kernel(tmp_path, text))


def test_another_process_must_agree(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance goes to other processes by its kernel's name; values that are others there are an error, not a mix-up."""
    found, space = made(tmp_path, "scaled(x[n])")
    monkeypatch.setitem(sys.modules, found.fn.__module__, types.SimpleNamespace(snippet=found))  # type: ignore[arg-type]
    instance = Instance.of_shapes(found, {"N": 3}, {"x": "f32", "y": "f32"})
    sent = pickle.dumps(instance)
    assert pickle.loads(sent) == instance
    space["FACTOR"] = 4.0
    with pytest.raises(kd.KernelError, match="other values in a process that compiles"):
        pickle.loads(sent)


def test_helpers_are_equal_where_they_mean_the_same(tmp_path: Path, settings: Any) -> None:
    one, two = (made(tmp_path, "x[n]")[1]["scaled"] for _ in range(2))
    assert (
        isinstance(one, Helper) and one == two and hash(one) == hash(two) and one != made(tmp_path, "x[n]")[1]["double"]
    )
    two.source.fn.__globals__["FACTOR"] = 1
    assert one != two


STATICS = [True, 1, 1.0, False, 0, 0.0, -0.0, None, "1", float("nan")]


def test_static_arguments_are_told_apart_by_kind(tmp_path: Path) -> None:
    text = """
@kd.kernel(x="N", y="N")
def snippet(x: kd.In, y: kd.Out, flag: kd.Static) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n]
"""
    found = kernel(tmp_path, text)
    instances = [bind(found, {"x": ONE, "y": np.zeros_like(ONE), "flag": flag})[0] for flag in STATICS]
    assert len(set(instances)) == len(STATICS)
    for flag, instance in zip(STATICS, instances, strict=True):
        assert str(instance.specialisation.statics[0][1]) == str(flag)
        same = None if flag is None else type(flag)(flag)
        assert bind(found, {"x": ONE, "y": np.zeros_like(ONE), "flag": same})[0] == instance
