"""One's own kernels as PyTorch sees them: torch.compile, export, fake tensors, tracing, torch.func, autograd."""

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import kpt_dsl as kd
from kpt_dsl.kernel import Kernel
from tests.ops import own
from tests.ops.own import relu, scaled, shifted, shifted_by_torch, soft, softmax, twice
from tests.tolerances import assert_close

GRADED = torch.ones(5, 7, requires_grad=True)
BACKENDS = ("eager", "aot_eager", "inductor")
ROOT = Path(__file__).parents[2]


def seeded(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def written(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    softmax(x, out)
    return out


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(got, expected, "f32", expected.shape[-1])


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    torch._dynamo.reset()


# ------------------------------------------------------------------ traced
@pytest.mark.parametrize("form", [written, softmax.torch], ids=["written", "made"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_serves_all_lengths(backend: str, form: Callable[..., torch.Tensor]) -> None:
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda x: form(x) * 2, fullgraph=True, dynamic=True, backend=counter)
    for rows, columns in ((5, 7), (50, 199), (3, 16)):
        x = seeded(rows, columns)
        near(compiled(x), x.softmax(1) * 2)
    assert counter.frame_count == 1


def test_what_specialises_is_no_argument_and_the_rest_is() -> None:
    def call(x: torch.Tensor, bias: torch.Tensor | None, first: int, power: float) -> torch.Tensor:
        y = torch.empty_like(x)
        shifted(x, bias, y, 0.5, first, activation=twice, power=power)
        return y

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    for rows, first in ((5, 2), (6, 3), (7, 5)):
        x, bias = seeded(rows, 8), seeded(8)
        near(compiled(x, bias, first, 2), shifted_by_torch(x, bias, 0.5, first, twice, 2))
    assert counter.frame_count == 1
    for power in (3, 1.5, 1):
        near(compiled(x, bias, 2, power), shifted_by_torch(x, bias, 0.5, 2, twice, power))
    near(compiled(x, None, 2, 1), shifted_by_torch(x, None, 0.5, 2, twice))
    tensors = (x, bias, x)
    names = {str(shifted.torch_op(*tensors, 0.5, 2, f, p)) for f in (relu, twice) for p in (1, 1.0, True)}
    assert len(names) == 6
    assert str(shifted.torch_op(x, None, x, 0.5, 2, relu)._schema).endswith(
        "(Tensor x, Tensor(a0!) y, float scale, SymInt first) -> ()"
    )
    made = shifted.torch_op(x, bias, torch.float32, 0.5, 2, relu, sums=torch.bfloat16)
    assert str(made._schema).endswith("(Tensor x, Tensor bias, float scale, SymInt first) -> (Tensor, Tensor)")


def test_names_from_outside_are_followed_in_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile(scaled.torch, fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(3)).tolist() == [2.0] * 3
    monkeypatch.setattr(own, "FACTOR", 5.0)
    assert compiled(torch.ones(3)).tolist() == [5.0] * 3


NOTEBOOK = """
import kpt_dsl as kd

@kd.kernel(x="N", y="N")
def cell(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] + FACTOR
"""


def test_a_kernel_that_is_defined_again_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "notebook_of_own_kernels.py"
    file.write_text(NOTEBOOK.replace("FACTOR", "1.0"))
    module = importlib.import_module(file.stem)
    compiled = torch.compile(lambda x: module.cell.torch(x) + 0, fullgraph=True, backend="aot_eager")
    found = [(compiled(torch.zeros(1)).item(), str(module.cell.torch_op(torch.ones(1), torch.float32)))]
    for value in ("23.0", "23.0"):
        file.write_text(NOTEBOOK.replace("FACTOR", value))
        importlib.reload(module)
        found.append((compiled(torch.zeros(1)).item(), str(module.cell.torch_op(torch.ones(1), torch.float32))))
    assert [value for value, _ in found] == [1.0, 23.0, 23.0]
    assert len({name for _, name in found}) == 3
    assert all("cell" in name for _, name in found)


def test_names_may_be_any_of_pythons() -> None:
    @kd.kernel(größe="N", alias="N")
    def malé(größe: kd.In, alias: kd.Out, by: kd.Float) -> None:  # noqa: PLC2401
        for n in kd.parallel(kd.tile("N")):
            alias[n] = größe[n] * by

    compiled = torch.compile(lambda x: malé.torch(x, by=2.0), fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(3)).tolist() == [2.0] * 3


def test_an_operator_is_made_once_whoever_asks_first() -> None:
    @kd.kernel(x="N", y="N")
    def copied(x: kd.In, y: kd.Out) -> None:
        for n in kd.parallel(kd.tile("N")):
            y[n] = x[n]

    asked = threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        asked.wait()
        found.append(copied.torch_op(torch.ones(1), torch.ones(1)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize("form", [written, softmax.torch], ids=["written", "made"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_sees_it(mode: str, form: Callable[..., torch.Tensor]) -> None:
    graph = make_fx(form, tracing_mode=mode)(seeded(3, 5))
    assert any("kpt_kernels.softmax" in str(node.target) for node in graph.graph.nodes)
    x = seeded(3, 5) + 1
    near(graph(x), x.softmax(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_sees_it() -> None:
    traced = torch.jit.trace(written, (seeded(3, 5),))
    x = seeded(3, 5) + 1
    near(traced(x), x.softmax(1))


def test_fake_tensors_give_shapes() -> None:
    with FakeTensorMode():
        x = torch.empty(3, 5, dtype=torch.bfloat16, device="cuda")
        assert written(x).device.type == "cuda"
        y, sums = shifted.torch(x, None, 1.0, 0, relu, sums=torch.float32)
        assert (y.shape, y.dtype, y.device.type) == ((3, 5), torch.bfloat16, "cuda")
        assert (sums.shape, sums.dtype) == ((3,), torch.float32)
        with pytest.raises(kd.InputError, match="dim N is 5 in x but 4 in out"):
            softmax(x, torch.empty(3, 4))
        with pytest.raises(kd.InputError, match="out has shape"):
            softmax(x, torch.empty(3))
        with pytest.raises(kd.InputError, match="x cannot be served: dtype 'float64'"):
            softmax.torch(x.double())


def test_other_modes_see_the_operator_and_numpy_arrays_do_not_concern_them() -> None:
    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = seeded(3, 5)
    with Seeing():
        near(written(x), x.softmax(1))
        assert any("kpt_kernels.softmax" in name for name in seen)
        seen.clear()
        array, out = x.numpy(), torch.empty(3, 5).numpy()
        seen.clear()
        softmax(array, out)
    assert not [name for name in seen if "kpt_kernels" in name]
    near(torch.from_numpy(out), x.softmax(1))


class Written(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        shifted(x, None, y, 0.5, x.shape[0], relu)
        return y + softmax.torch(x)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    program = export(Written(), (seeded(3, 16),), dynamic_shapes=shapes, strict=strict)
    for given in (program, program.run_decompositions({})):
        x = seeded(5, 9)
        near(given.module()(x), shifted_by_torch(x, None, 0.5, 5, relu) + x.softmax(1))


LOADING = """
import torch
from tests.ops.own import softmax
if {made}:
    softmax.torch_op(torch.empty(1, 1, device="meta"), torch.empty(1, 1, device="meta"))
x = torch.randn(5, 7)
assert torch.allclose(torch.export.load({file!r}).module()(x), x.softmax(1), atol=1e-6)
"""


class Softmax(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return written(x)


@pytest.mark.parametrize("made", [True, False])
def test_an_exported_program_is_loaded_where_the_operator_is(made: bool, tmp_path: Path) -> None:
    file = tmp_path / "program.pt2"
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}
    torch.export.save(export(Softmax(), (seeded(3, 16),), dynamic_shapes=shapes), file)
    command = [sys.executable, "-c", LOADING.format(file=str(file), made=made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is made, done.stderr
    assert made or "failed to resolve torch.ops.kpt_kernels.softmax_" in done.stderr


@pytest.mark.parametrize("call", [
    lambda x: softmax(x, torch.empty(4, 3)),
    lambda x: softmax(x, otu=x),
    lambda x: softmax.torch(x, x),
    lambda x: softmax.torch(x.double()),
    lambda x: softmax(GRADED, torch.empty_like(x)),
    lambda x: softmax.torch(x, backend="cuda"),
    lambda x: softmax.torch(x, config={"nonsense": 3}),
    lambda x: shifted.torch(x, None, 1.0, 0, (1, 2)),
], ids=["dims", "name", "output", "dtype", "grad", "backend", "knob", "static"])  # fmt: skip
def test_a_compiled_call_fails_with_the_words_of_an_eager_one(call: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(kd.KptError) as told:
        call(seeded(5, 7))
    words = str(told.value).partition("; ")[0]
    with pytest.raises(Exception) as compiled:  # noqa: PT011 - torch.compile has several of its own around it
        torch.compile(call, fullgraph=True, backend="aot_eager")(seeded(5, 7))
    assert words.replace("'", "") in str(compiled.value).replace("\\'", "").replace("'", "")


def test_backend_and_config_are_part_of_a_compiled_call() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return softmax.torch(x, backend="triton", config={"num_warps": 2})

    x = seeded(5, 7)
    near(torch.compile(call, fullgraph=True, backend="aot_eager")(x), x.softmax(1))
    plain, chosen = softmax.torch_op(x, x), softmax.torch_op(x, x, backend="triton", config={"num_warps": 2})
    assert plain != chosen


def test_a_kernel_has_an_operator_of_each_form_that_opcheck_passes() -> None:
    x = seeded(5, 7)
    opcheck(softmax.torch_op(x, x), (x, torch.empty_like(x)))
    opcheck(softmax.torch_op(x, torch.float32), (x,))
    opcheck(soft.torch_op(x, torch.float32), (x.clone().requires_grad_(),))
    bias = seeded(7, grad=True)
    made = shifted.torch_op(x, bias, torch.float32, 0.5, 2, relu, sums=torch.float32)
    opcheck(made, (x, bias, 0.5, 2))


# ------------------------------------------------------------------ new outputs
def test_new_outputs_follow_inputs() -> None:
    x = seeded(5, 7)
    near(softmax.torch(x), x.softmax(1))
    assert softmax.torch(x.bfloat16()).dtype == torch.bfloat16
    assert softmax.torch(x, out=torch.float16).dtype == torch.float16
    index, table = torch.tensor([2, 0], dtype=torch.int32), seeded(3, 4)
    assert torch.equal(own.looked_up.torch(index, table), table[index.long()])
    y, sums = shifted.torch(x, None, 1.0, 0, relu, sums=torch.float32)
    near(sums, y.sum(1))


def test_elements_that_no_program_stores_are_zeros() -> None:
    @kd.kernel(x="M N", y="M N", total="N")
    def first_column(x: kd.In, y: kd.Out, total: kd.Out) -> None:
        for m in kd.parallel(kd.tile("M")):
            y[m, 0] = x[m, 0]
            total[:] += kd.sum(x[m, :], axis=0)

    x = seeded(300, 5)
    for _ in range(3):
        y, total = first_column.torch(x)
        assert torch.equal(y, torch.cat([x[:, :1], torch.zeros(300, 4)], 1))
        assert_close(total, x.sum(0), "f32", 300)
        y.fill_(7.0)
        total.fill_(7.0)
        del y, total  # whose memory the next ones may get


@pytest.mark.parametrize(("call", "words"), [
    (lambda x: softmax.torch(x, x), "2 arguments were given, but it makes its outputs and takes 1: x"),
    (lambda x: softmax.torch(x, x=x), "'x' was given twice"),
    (lambda x: softmax.torch(x, out=x), "out is Tensor; it makes its outputs"),
    (lambda x: softmax.torch(x, out=None), "no output is left to make"),
    (lambda x: softmax.torch(), "missing a required argument: 'x'"),
    (lambda x: softmax.torch(x.numpy()), "no input is a torch tensor"),
    (lambda x: own.looked_up.torch(x[0].int(), x, partial=torch.float32), "dim P of output partial is in no input"),
    (lambda x: shifted.torch_op(x, None, x, 1.0, 0, relu, sums=torch.float32), "either all as tensors or all as dtypes"),
])  # fmt: skip
def test_calls_without_outputs_that_do_not_fit(call: Callable[[torch.Tensor], Any], words: str) -> None:
    with pytest.raises(kd.InputError, match=words):
        call(seeded(5, 7))


# ------------------------------------------------------------------ gradients
def softmax_gradient(x: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad((x.softmax(1) ** 2).sum(), x)
    return found


@pytest.mark.parametrize("wrap", ["eager", *BACKENDS, "functional"])
def test_a_kernel_gives_the_gradient(wrap: str) -> None:
    x = seeded(5, 7, grad=True)
    if wrap == "functional":
        got = torch.func.grad(lambda x: (soft.torch(x) ** 2).sum())(x.detach())
    else:
        call = soft.torch if wrap == "eager" else torch.compile(soft.torch, fullgraph=True, backend=wrap)
        (got,) = torch.autograd.grad((call(x) ** 2).sum(), x)
    near(got, softmax_gradient(x))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activation", [relu, twice], ids=["relu", "twice"])
def test_a_function_gives_the_gradients(activation: Any, with_bias: bool, compiled: bool) -> None:
    x, bias = seeded(6, 9, grad=True), seeded(9, grad=True) if with_bias else None
    inputs = [x] if bias is None else [x, bias]

    def call() -> torch.Tensor:
        return (shifted.torch(x, bias, 0.5, 2, activation, power=3) ** 2).sum()

    expected = (shifted_by_torch(x, bias, 0.5, 2, activation, 3) ** 2).sum()
    got = (torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call)()
    for one, other in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs), strict=True):
        near(one, other)


def test_gradients_of_half_precision_have_their_inputs_dtype() -> None:
    x = seeded(5, 7).bfloat16().requires_grad_()
    soft.torch(x, out=torch.float32).square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    made = soft.backward.run({"out": x.detach().float()}, {"out": x.detach().float()}, {"x": torch.bfloat16})
    assert made["x"].dtype == torch.bfloat16  # by the kernel, not by autograd afterwards


def test_an_input_that_a_gradient_leaves_out_is_an_error() -> None:
    @kd.kernel(x="N", factor="N", y="N")
    def product(x: kd.In, factor: kd.In, y: kd.Out) -> None:
        for n in kd.parallel(kd.tile("N")):
            y[n] = x[n] * factor[n]

    @product.gradient
    @kd.kernel(dy="N", factor="N", dx="N")
    def product_backward(dy: kd.In, factor: kd.In, dx: kd.Out) -> None:
        for n in kd.parallel(kd.tile("N")):
            dx[n] = dy[n] * factor[n]

    x, factor = seeded(5, grad=True), seeded(5)
    product.torch(x, factor).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, factor)
    for call in (lambda f: product.torch(x, f), lambda f: product(x.detach(), f, torch.empty(5))):
        with pytest.raises(kd.InputError, match=r"product_backward gives no gradient of it.*factor.detach\(\)"):
            call(factor.clone().requires_grad_())


def test_a_function_that_gives_another_number_of_gradients_is_an_error() -> None:
    @kd.kernel(x="N", y="N")
    def copied(x: kd.In, y: kd.Out) -> None:
        for n in kd.parallel(kd.tile("N")):
            y[n] = x[n]

    copied.gradient(lambda dy: (dy, dy))
    with pytest.raises(kd.InputError, match="gave 2 gradients; it gives one for each tensor that the kernel reads"):
        copied.torch(seeded(5, grad=True)).sum().backward()


@pytest.mark.parametrize("form", ["written", "made"])
def test_a_gradient_that_is_missing_is_an_error(form: str) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return written(x) if form == "written" else softmax.torch(x)

    x = seeded(5, 7, grad=True)
    with pytest.raises(kd.InputError, match=r"x requires grad.*no_grad.*x.detach\(\).*softmax.gradient"):
        call(x)
    with pytest.raises(kd.InputError, match="x requires grad"):
        torch.func.grad(lambda x: call(x).sum())(x.detach())
    with torch.no_grad():
        near(call(x), x.softmax(1))


def test_a_call_that_writes_has_no_gradient_and_says_which_has() -> None:
    x = seeded(5, 7, grad=True)
    with pytest.raises(kd.InputError, match=r"x requires grad.*soft\.torch\(\.\.\.\)"):
        soft(x, torch.empty(5, 7))
    with pytest.raises(kd.InputError, match="out requires grad"):
        soft(x.detach(), x * 2)


def test_a_second_derivative_is_an_error_where_a_kernel_gave_the_first() -> None:
    x = seeded(5, 7, grad=True)
    (first,) = torch.autograd.grad(soft.torch(x).square().sum(), x, create_graph=True)
    near(first.detach(), softmax_gradient(x))
    with pytest.raises(kd.InputError, match="softmax_backward gave a gradient that is to be differentiated"):
        first.sum().backward()


def test_a_second_derivative_follows_a_function() -> None:
    x = seeded(5, 7, grad=True)

    def second(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), x)
        return found

    near(second(lambda x: shifted.torch(x, None, 0.5, 2, twice)), second(lambda x: shifted_by_torch(x, None, 0.5, 2, twice)))


def test_forward_mode_is_an_error() -> None:
    x = seeded(5, 7)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for call in (written, softmax.torch, soft.torch):
            with pytest.raises(kd.InputError, match="x carries a tangent"):
                call(dual)
        near(written(x), x.softmax(1))


@pytest.mark.parametrize("call", [written, softmax.torch], ids=["written", "made"])
def test_vmap_is_an_error_that_says_what_to_do(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(kd.InputError, match="make the batch one of its dims"):
        torch.vmap(call)(seeded(2, 5, 7))


def test_autograd_sees_that_a_kernel_wrote() -> None:
    x, factor = seeded(5, 7), seeded(5, 7, grad=True)
    y = (x * factor).sum()
    softmax(x, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize(("backward", "words"), [
    (lambda x, grad: x, "takes 'grad'; a gradient takes arguments of the kernel by their names"),
    (softmax, "writes 'out'; outputs of a gradient are called dx"),
])  # fmt: skip
def test_gradients_that_do_not_fit_a_kernel(backward: Any, words: str) -> None:
    with pytest.raises(kd.InputError, match=words):
        Kernel(softmax.fn, {"x": "M N", "out": "M N"}).gradient(backward)
