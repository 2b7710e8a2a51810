"""First configs on disk are found by all that they follow from; whatever lies there, they are those that are chosen."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kpt.ops  # noqa: F401
import kpt_dsl as kd
from kpt.ops import registry
from kpt_dsl import first_configs, targets
from kpt_dsl.build import cache
from kpt_dsl.classes import Class, ClassSpace
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from kpt_dsl.targets import Target

pytestmark = pytest.mark.newest  # files are kpt's own

H200 = targets.get("nvidia-h200")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(first_configs, "_code", lambda: "this text")
    return tmp_path


@kd.kernel(x="M N", y="M N")
def scaled(x: kd.In, y: kd.Out, by: kd.Static) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = x[m, :] * FACTOR if by else x[m, :]


FACTOR = 2.0


def instance(rows: int = 700, columns: int = 64, dtype: str = "bf16", by: Any = True) -> Instance:
    return Instance.of_shapes(scaled, {"M": rows, "N": columns}, {"x": dtype, "y": dtype}, {"by": by})


def firsts(one: Instance, monkeypatch: pytest.MonkeyPatch, target: Target = H200) -> tuple[tuple[Config, ...], int]:
    """The first configs of an instance's class as a process gives them that has chosen none, and how often it had to."""
    asked: list[ClassSpace] = []
    real = ClassSpace._chosen
    with monkeypatch.context() as patch:
        patch.setattr(ClassSpace, "_chosen", lambda self: asked.append(self) or real(self))
        found = ClassSpace(Class.of(one), target).firsts
    return found, len(asked)


@pytest.mark.parametrize("op", ["rms_norm", "flash_attention"])
def test_another_process_chooses_none_for_any_length_of_the_class(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[dict[str, int]] = (
        [{"M": n, "N": 2048} for n in (700, 999)]
        if op == "rms_norm"
        else [{"B": 1, "H": 8, "G": 2, "M": n, "N": n, "D": 64} for n in (700, 720)]
    )
    one, other = [registry.get(op).instances(dims, "bf16")[0] for dims in shapes]
    chosen, asked = firsts(one, monkeypatch)
    assert asked == 1
    assert firsts(other, monkeypatch) == (chosen, 0)
    assert [list(config.items()) for config in firsts(one, monkeypatch)[0]] == [list(config.items()) for config in chosen]


def test_whatever_a_choice_follows_from_has_configs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(one: Instance, target: Target = H200) -> int:
        return firsts(one, monkeypatch, target)[1]

    assert asked(instance()) == 1 and asked(instance()) == 0
    others = [instance(1100), instance(columns=128), instance(dtype="f32"), instance(by=1), instance(by=False)]
    assert [asked(other) for other in others] == [1] * len(others)
    lies = instance().extents
    turned, odd = replace(lies, strides=(("x", (1, 700)), ("y", (64, 1)))), replace(lies, aligned=frozenset({"y"}))
    assert [asked(replace(instance(), extents=extents)) for extents in (turned, odd)] == [1, 1]
    assert asked(instance(), replace(H200, cores=64)) == 1
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert asked(instance()) == 1
    monkeypatch.setattr(first_configs, "_code", lambda: "another text")
    assert asked(instance()) == 1


def altered(text: str) -> str:
    """Another legal value of a knob, as a bit that flips leaves it."""
    plain = json.loads(text)
    plain["configs"][0]["num_warps"] = 16 // plain["configs"][0]["num_warps"]
    return json.dumps(plain)


@pytest.mark.parametrize(
    "damage",
    [altered, lambda _: "", lambda good: good[:-1], lambda _: "[]", lambda _: '{"seal": 1}', lambda _: '{"configs": [1]}'],
)
def test_what_is_damaged_is_chosen_again(
    damage: Callable[[str], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, _ = firsts(instance(), monkeypatch)
    (file,) = folder.glob("first-configs/*/configs.json")
    file.write_text(damage(file.read_text()))
    assert firsts(instance(), monkeypatch) == (chosen, 1)


def test_rules_of_others_are_asked_each_time(folder: Path) -> None:
    """Their text is not known here."""
    config = (Config(num_warps=4),)
    for theirs in (replace(H200, rules="others.rules"), replace(H200, schedules=(("another", "others.rules"),))):
        for found in (config, config * 2):
            assert first_configs.kept((instance(),), theirs, lambda found=found: found) == found
    assert not list(folder.glob("first-configs/*"))


def test_a_text_that_changed_after_it_was_imported_is_nobodys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    code = first_configs._code.__wrapped__
    assert len(code()) == 64 and code() == code()
    monkeypatch.setattr(first_configs, "_BEGAN", 0.0)
    assert code() == ""
    monkeypatch.setattr(first_configs, "_code", lambda: "")
    assert firsts(instance(), monkeypatch)[1] == firsts(instance(), monkeypatch)[1] == 1
    assert not list(folder.glob("first-configs/*"))
