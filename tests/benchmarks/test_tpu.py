"""Predictions for TPUs: counts against masks, times of listings made by hand, peers that fail, what is written. Two at the end
ask Google's compiler."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import tpu
from benchmarks.tpu import cases, cost, peers
from benchmarks.tpu.cost import Counts, Work
from kpt_dsl import build, targets
from kpt_dsl.build import Report
from kpt_dsl.build.tpu_compiler import Compiler
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime.pallas import define
from tests.emit_pallas.test_compiler import LISTING

V6E = targets.get("tpu-v6e")
RESULTS = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("tpu-*/tpu.json"))
NO_WORK = Work(0.0, 0)

PALLAS = '  ROOT %peer.1 = bf16[8]{0} custom-call(%x.1), custom_call_target="tpu_custom_call", frontend_attributes={}\n'
FUSION = '  %fusion.2 = bf16[8]{0} fusion(%x.1), backend_config={"window_config":{"iteration_bounds":["50","3","1"]}}\n'


def answer(program: str, **bundles: str) -> dict[str, Any]:
    """What the compiler says of a program with the listing that tests of it have: 7 bundles a step, parts of 2 and 1."""
    return {"program": program, "bundles": {name.replace("_", "."): text for name, text in bundles.items()}}


# ------------------------------------------------------------------ how long
def test_a_pallas_kernel_takes_its_bundles_as_often_as_they_run() -> None:
    made = answer(PALLAS, peer_1=LISTING, TLP=LISTING)
    found = cost.microseconds(made, Counts(10**6, (10**5, 10**3), 0), NO_WORK, targets.get("tpu-v4"))
    assert found == pytest.approx(0.35 * 10**6 / 2)  # at least, a step: two cores
    steps = Counts(1000, (10**9, 10**6), 0)
    found = cost.microseconds(made, steps, NO_WORK, V6E)
    assert found == pytest.approx((7 * 1000 + 2 * 10**9 + 10**6) / 1.75e3)


def test_bytes_and_products_take_their_time_too() -> None:
    made = answer(PALLAS, peer_1=LISTING)
    assert cost.microseconds(made, Counts(1, (), 1638 * 10**6), NO_WORK, V6E) == pytest.approx(1000, rel=1e-6)
    work = Work(918e9, 0)
    assert cost.microseconds(made, Counts(1, (), 0), work, V6E) == pytest.approx(1000 / 0.95, rel=1e-6)
    assert work.least(V6E) == pytest.approx(1000 / 0.95)


def test_fusions_run_as_often_as_their_bounds_say_and_add_up() -> None:
    made = answer(FUSION + FUSION.replace("fusion.2", "fusion.3"), fusion_2=LISTING, fusion_3=LISTING, TLP=LISTING)
    assert cost.microseconds(made, None, NO_WORK, V6E) == pytest.approx(2 * 150 * 10 / 1.75e3)
    two_cores = targets.get("tpu-v5p")  # whose clock is the same
    assert cost.microseconds(made, None, NO_WORK, two_cores) == pytest.approx(150 * 10 / 1.75e3)
    assert cost.microseconds(made, None, Work(0.0, 1638 * 10**6), V6E) == pytest.approx(1000)
    assert cost.microseconds(made, None, Work(918e9, 0), V6E) == pytest.approx(1000 / 0.95)


def test_code_that_does_not_show_what_was_counted_has_no_time() -> None:
    with pytest.raises(CompileError, match="does not show the 3 conditional parts"):
        cost.microseconds(answer(PALLAS, peer_1=LISTING), Counts(1, (1, 1, 1), 0), NO_WORK, V6E)
    with pytest.raises(CompileError, match="has 0 Pallas kernels"):
        cost.microseconds(answer(FUSION, fusion_2=LISTING), Counts(1, (), 0), NO_WORK, V6E)


# ------------------------------------------------------------------ how often
@pytest.mark.parametrize(("length", "rows", "keys"), [(16, 4, 4), (16, 2, 8), (32, 8, 4), (8, 1, 4), (8, 8, 8)])
def test_blocks_under_a_causal_mask(length: int, rows: int, keys: int) -> None:
    mask = np.tril(np.ones((length, length), bool)).reshape(length // rows, rows, length // keys, keys)
    full, some = mask.all(axis=(1, 3)).sum(), mask.any(axis=(1, 3)).sum()
    assert peers.blocks(length, rows, keys) == (full, some - full)


@pytest.mark.parametrize(
    ("name", "causal", "steps", "visits"),
    [
        ("JAX flash", False, 16, (4, 4)),
        ("JAX flash", True, 16, (4, 10, 4)),
        ("JAX splash", False, 16, (4, 16, 4)),
        ("JAX splash", True, 16, (4, 10, 4)),
        ("tokamax", False, 16, (4, 4)),
        ("tokamax", True, 10, (4, 6, 4, 4)),
    ],
)
def test_parts_of_attention(name: str, causal: bool, steps: int, visits: tuple[int, ...]) -> None:
    counts = peers.attention_counts(name, 2, 64, 8, causal, 16, 16)
    assert (counts.steps, counts.visits) == (2 * steps, tuple(2 * each for each in visits))
    blocks = 10 if causal else 16
    assert counts.moved_bytes == 2 * 8 * 2 * (64 + 64 + blocks * 2 * 16)  # q and o once, keys and values again and again


def test_blocks_of_a_product() -> None:
    (xla,) = peers.matmuls(2048, 1024, 4096)["XLA"]
    first, _ = peers.matmuls(2048, 1024, 4096)["JAX Pallas matmul"]
    assert xla.counts is None
    assert first.counts == Counts(2 * 8, (2,), 2 * (2 * 8 * 2048 * 512 + 2048 * 1024))


def test_cases_have_names_and_kernels_of_their_own() -> None:
    found = list(cases.every())
    assert len({case.name for case in found}) == len({case.problem for case in found}) == len(found) == 8
    assert {f"attention {n}k{mask}" for n in (4, 16) for mask in ("", " causal")} < {case.name for case in found}
    for case in found:
        assert ("tokamax" in case.missing) == (case.name.startswith("attention") and find_spec("tokamax") is None)


# ------------------------------------------------------------------ what peers compute
def drawn(*shape: int) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.bfloat16)


def wide(array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(array.astype("float32")).astype(np.float64)


@pytest.mark.parametrize(("text", "scale"), [(peers.FLASH, 1.0), (peers.SPLASH, 64**-0.5)], ids=["flash", "splash"])
def test_attentions_compute_attention(text: str, scale: float) -> None:
    """Interpreted; splash takes queries that are scaled."""
    pltpu = pytest.importorskip("jax.experimental.pallas.tpu")
    q, k, v = drawn(1, 1, 256, 64) * scale, drawn(1, 1, 256, 64) + 1, drawn(1, 1, 256, 64)
    with pltpu.force_tpu_interpret_mode():
        found = define("peer", text.format(rows=128, keys=128, at_once=128, causal=True))(q, k, v)
    scores = wide(q)[0, 0] @ wide(k)[0, 0].T * (64**-0.5 if scale == 1.0 else 1.0)
    weights = np.exp(np.where(np.tril(np.ones((256, 256), bool)), scores, -np.inf))
    expected = weights @ wide(v)[0, 0] / weights.sum(axis=1, keepdims=True)
    assert np.abs(wide(found).reshape(256, 64) - expected).max() < 0.03


def test_formulas_compute_products_and_norms() -> None:
    pytest.importorskip("jax")
    x, weight, bias = drawn(24, 40), drawn(40), drawn(40) + 1
    centred = wide(x) - wide(x).mean(axis=1, keepdims=True)
    layer = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * wide(weight) + wide(bias)
    rms = wide(x) / np.sqrt((wide(x) ** 2).mean(axis=1, keepdims=True) + 1e-6) * wide(weight)
    assert np.abs(wide(define("peer", peers.XLA_LAYER_NORM)(x, weight, bias)) - layer).max() < 0.05
    assert np.abs(wide(define("peer", peers.XLA_RMS_NORM)(x, weight)) - rms).max() < 0.05
    product = wide(x) @ wide(x).T
    assert np.abs(wide(define("peer", peers.XLA_MATMUL)(x, x.T)) - product).max() < 0.5


# ------------------------------------------------------------------ the command
@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for libtpu: kpt's kernels take two million cycles, XLA's fusions their bounds, what is tiled is refused. Gives the
    generations that were compiled for."""
    archs = []

    def run(self: Compiler, job: dict[str, Any]) -> dict[str, Any]:
        archs.append(job["arch"])
        if "pallas" in job["text"]:
            raise CompileError("no room")
        return answer(FUSION, fusion_2=LISTING)

    monkeypatch.setattr(Compiler, "run", run)
    monkeypatch.setattr(build, "compile", lambda *_: Report("", "", cycles=2 * 10**6))
    monkeypatch.setattr(tpu, "versions", lambda: "jax 1, libtpu 2")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    return archs


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    return command.main()


def test_a_table_for_each_generation_without_a_device(
    compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(monkeypatch, "tpu", "--only", "matmul 4096", "--out", str(tmp_path)) == 0
    assert set(compiler) == {"v5e", "v5p", "v6e", "tpu7x"}
    for device in tpu.DEVICES:
        written = json.loads((tmp_path / device / "tpu.json").read_text())
        (row,) = written["rows"]
        assert written["device"] == f"{device}, not run"
        assert "predicted, run on no TPU" in written["method"]
        assert written["compiled by"] == "jax 1, libtpu 2"
        assert row["best peer"] == "XLA"
        assert row["microseconds"]["kpt"] == pytest.approx(2e12 / targets.get(device).clock_hz, rel=1e-4)
        assert row["ratio"] == pytest.approx(row["microseconds"]["XLA"] / row["microseconds"]["kpt"], rel=1e-3)
        assert row["held at 0.95 of peak"] == ["XLA"]  # its three bundles are less than the products can take
        assert row["missing"] == {
            "JAX Pallas matmul, 1024 x 1024 x 512": "no room", "JAX Pallas matmul, 512 x 1024 x 1024": "no room",
        }  # fmt: skip
        assert (tmp_path / device / "tpu.png").stat().st_size
    assert "missing: JAX Pallas matmul" in capsys.readouterr().out


def test_what_fails_of_kpt_costs_its_own_row(
    compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(problem: Any, target: Any, _: Any) -> Report:
        if "layer_norm" in str(problem):
            raise CompileError("vmem is full")
        return Report("", "", cycles=2 * 10**6)

    monkeypatch.setattr(build, "compile", refuse)
    assert asked(monkeypatch, "tpu", "--only", "v6e", "--out", str(tmp_path)) == 1
    (folder,) = tmp_path.iterdir()
    rows = json.loads((folder / "tpu.json").read_text())["rows"]
    assert [row["case"] for row in rows] == [case.name for case in cases.every() if "layer_norm" not in case.name]
    assert "tpu-v6e layer_norm 8192x4096 failed" in (printed := capsys.readouterr().err)
    assert "vmem is full" in printed
    assert asked(monkeypatch, "tpu", "--only", "nothing like it", "--out", str(tmp_path)) == 2


def test_the_best_of_several_sizes_is_named(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And tuning comes first, where it is asked for."""
    monkeypatch.setattr(Compiler, "run", lambda _, job: answer(PALLAS, peer_1=LISTING))
    tuned = []
    monkeypatch.setattr(tpu, "_tune", lambda *given: tuned.append(given))
    case = cases.attention(16, 4096, 8, causal=False)  # narrow, so that steps count
    with tpu._Compiling(V6E) as compiling:
        row = tpu.row(case, V6E, compiling, tune=2.0)
    assert tuned == [(case.problem, V6E, 2.0)]
    assert row["sizes"]["JAX flash"] == "2048 x 2048, 1024 at once"  # fewer steps of the same code
    assert {"kpt", "kpt first", "JAX flash"} <= row["microseconds"].keys()
    assert row["ratio"] == row["ratio first"]


def test_the_command_says_that_no_tpu_was_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, "--help")
    assert "run on no TPU" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_shipped_tables_are_predictions_below_the_peak(path: Path) -> None:
    written = json.loads(path.read_text())
    assert written["device"] == f"{path.parent.name}, not run"
    assert written["method"] == cost.METHOD
    assert {"jax", "libtpu"} <= written["versions"].keys()
    peak = targets.get(path.parent.name).peak("bf16") / 1e12
    for row in written["rows"]:
        if row["unit"] == "TFLOP/s":
            assert max(row["rate"].values()) <= 0.95 * peak + 0.1


# ------------------------------------------------------------------ Google's compiler
@pytest.mark.libtpu
def test_the_code_of_peers_shows_the_parts_that_are_counted() -> None:
    pytest.importorskip("libtpu")
    compiler = Compiler()
    taken = {}
    peers_of = (("JAX flash", peers.FLASH, False), ("JAX flash", peers.FLASH, True), ("JAX splash", peers.SPLASH, True))
    for name, text, causal in peers_of:
        case = cases.attention(2, 1024, 128, causal)
        text = text.format(rows=256, keys=256, at_once=256, causal=causal)
        made = compiler.run({"name": "peer", "text": text, "arch": "v6e", "arguments": case.arguments})
        counts = peers.attention_counts(name, 2, 1024, 128, causal, 256, 256)
        taken[name, causal] = cost.microseconds(made, counts, case.work, V6E)
        assert taken[name, causal] > case.work.least(V6E)
    compiler.stop()
    assert 0.5 < taken["JAX flash", True] / taken["JAX flash", False] < 1


@pytest.mark.libtpu
def test_a_product_has_a_time_by_everybody() -> None:
    pytest.importorskip("libtpu")
    case = cases.matmul(1024, 1024, 1024)
    with tpu._Compiling(V6E) as compiling:
        row = tpu.row(case, V6E, compiling, 0.0)
    assert row["microseconds"].keys() == {"kpt", "kpt first", "XLA", "JAX Pallas matmul"}
    assert not row["missing"]
    assert max(row["microseconds"].values()) < 4 * min(row["microseconds"].values())
