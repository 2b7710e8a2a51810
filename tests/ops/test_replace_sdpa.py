"""PyTorch's attention called by a module's own code, and PyTorch's own modules of attention: for these modules it is kpt's."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

import kpt
from benchmarks import nano_gpt
from kpt.ops import counters, prefer
from tests.ops.calls import Asked, served
from tests.tolerances import assert_close

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(20))


class Block(nn.Module):
    """As nanoGPT's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.qkv, self.out, self.dropout = nn.Linear(16, 48), nn.Linear(16, 16), 0.1

    def heads(self, x: torch.Tensor) -> Any:
        return [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)]

    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = self.heads(x)
        p = self.dropout if self.training else 0
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=p, is_causal=True)
        return self.out(torch.cat([y], 1).transpose(1, 2).flatten(2))


class ByF(Block):
    """As timm's, with a choice of its own."""

    fused = True

    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = self.heads(x)
        run = (lambda: F.scaled_dot_product_attention(q, k, v, scale=0.3)) if self.fused else (lambda: v)
        return self.out(F.relu(run()).transpose(1, 2).flatten(2))


class ByNN(Block):
    """Its code has a global's name for an attribute, as Sam's has."""

    def forward(self, x: torch.Tensor) -> Any:
        assert self.__class__.__name__
        return self.out(nn.functional.scaled_dot_product_attention(*self.heads(x)).transpose(1, 2).flatten(2))


class ByName(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return self.out(attend(*self.heads(x), is_causal=True).transpose(1, 2).flatten(2))


class Elsewhere:
    """What only is called alike."""

    @staticmethod
    def scaled_dot_product_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return v


class Other(Block):
    """Asks for PyTorch's, and calls another's."""

    def forward(self, x: torch.Tensor) -> Any:
        assert hasattr(F, "scaled_dot_product_attention")
        y = Elsewhere.scaled_dot_product_attention(*self.heads(x))
        return self.out(F.dropout(y, 0.0).transpose(1, 2).flatten(2))


def attended() -> int:
    return sum(served("flash_attention").values())


@pytest.mark.parametrize("kind", [Block, ByF, ByNN, ByName])
def test_code_that_calls_it_calls_kpts(kind: Any) -> None:
    module, own = kind().eval(), kind().eval()
    expected = own(X)
    report = kpt.replace_modules(module)
    assert [(c.path, c.kind) for c in report.changes] == [("(model)", "scaled_dot_product_attention")]
    assert "kpt.ops.scaled_dot_product_attention" in str(report)
    before = served("flash_attention").get("numpy", 0)
    with prefer("numpy"):
        assert_close(module(X).detach(), expected.detach(), "f32", 5)
    assert served("flash_attention")["numpy"] == before + 1
    before = attended()
    own(X)
    assert attended() == before  # nobody else's
    assert F.scaled_dot_product_attention is attend
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other(X), module(X))
    torch._dynamo.reset()
    both = torch.compile(lambda x: module(x) - own(x), fullgraph=True, backend="eager")
    assert_close(both(X).detach(), torch.zeros_like(X), "f32", 5)
    kpt.restore_modules(module)
    assert type(module) is kind
    assert torch.equal(module(X), expected)


def test_what_only_has_the_name_stays() -> None:
    report = kpt.replace_modules(Other())
    assert (report.changes, report.skipped) == ((), ())


@pytest.mark.parametrize("heads", [2, 3, 12])
def test_attention_that_seems_to_be_an_mlp(heads: int) -> None:
    """Both its layers are called one after the other, with something between: at two heads, on rows of any width."""
    module = nano_gpt.Attention(heads, 12 * heads)
    assert [c.kind for c in kpt.replace_modules(module).changes] == ["scaled_dot_product_attention"]


def test_rotary_and_attention_in_one_module() -> None:
    module, own = Rotated().eval(), Rotated().eval()
    (change,) = kpt.replace_modules(module).changes
    assert change.kind == "rotary, scaled_dot_product_attention"
    before = attended(), sum(served("rotary").values())
    assert_close(module(X), own(X), "f32", 5)
    assert (attended(), sum(served("rotary").values())) == (before[0] + 1, before[1] + 1)
    kpt.restore_modules(module)
    kpt.replace_modules(module, only=["rotary"])
    assert [name for name, _ in module.served.exchanges] == ["turn"]


def turn(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    far = [torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) for x in (q, k)]
    return q * cos[:, None] + far[0] * sin[:, None], k * cos[:, None] + far[1] * sin[:, None]


class Rotated(Block):
    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = self.heads(x)
        q, k = turn(q, k, x[:1, :, :8].detach().cos(), x[:1, :, 8:].detach().sin())
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# ------------------------------------------------------------------ PyTorch's own modules
def padding(rows: int, keys: int) -> torch.Tensor:
    hidden = torch.zeros(rows, keys, dtype=torch.bool)
    hidden[1, 3:] = True
    return hidden


CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "padding": {"key_padding_mask": padding(3, 5)},
    "added": {"attn_mask": CAUSAL},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "bools and padding": {"attn_mask": CAUSAL.isinf(), "key_padding_mask": padding(3, 5)},
    "of each head": {"attn_mask": torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(20))},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"bias": False}, {"kdim": 12, "vdim": 7}], ids=str)
def test_multi_head_attention(mask: str, options: dict[str, Any]) -> None:
    torch.manual_seed(20)
    own = nn.MultiheadAttention(16, 2, **{"batch_first": True, **options}).eval()
    module = copy.deepcopy(own)
    (change,) = kpt.replace_modules(module).changes
    assert (change.kind, change.after) == ("scaled_dot_product_attention", "KptMultiheadAttention")
    given = X, X[..., : options.get("kdim", 16)], X[..., : options.get("vdim", 16)]
    if "batch_first" in options:
        given = tuple(t.transpose(0, 1) for t in given)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = attended()
            got, weights = module(*given, need_weights=False, **MASKS[mask])
            assert attended() == before + 1
            assert weights is None
            assert_close(got.detach(), own(*given, need_weights=False, **MASKS[mask])[0].detach(), "f32", 16)
    kpt.restore_modules(module)
    assert type(module) is nn.MultiheadAttention


PRODUCTS_AND_VIEWS = {
    "addmm", "t", "view", "_unsafe_view", "split_with_sizes", "unbind", "transpose", "permute", "detach",
}  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("same", ["all", "query and key", "key and value", "query and value", "none"])
@pytest.mark.parametrize("compiled", [False, True])
def test_attention_without_masks_copies_nothing(same: str, batch_first: bool, compiled: bool) -> None:
    """Whichever inputs are one tensor; with all gradients, and values, queries and keys where the products leave them."""
    torch._dynamo.reset()
    torch.manual_seed(20)
    own = nn.MultiheadAttention(16, 2, batch_first=batch_first)
    module = copy.deepcopy(own)
    kpt.replace_modules(module)
    q, k, v = (torch.randn(3, 5, 16, requires_grad=True) for _ in range(3))
    q, k, v = {"all": (q, q, q), "query and key": (q, q, v), "key and value": (q, k, k), "query and value": (q, k, q),
               "none": (q, k, v)}[same]  # fmt: skip
    leaves = list({id(t): t for t in (q, k, v)}.values())
    run = torch.compile(module, fullgraph=True, backend="eager") if compiled else module
    with torch.no_grad(), Asked() as asked:
        module(q, k, v, need_weights=False)
    before = asked.names[: asked.names.index("kpt::flash_attention")]
    assert {name.partition("::")[2] for name in before} <= PRODUCTS_AND_VIEWS
    for mask in ({}, {"attn_mask": CAUSAL, "is_causal": True}):
        got, expected = (m(q, k, v, need_weights=False, **mask)[0] for m in (run, own))
        assert_close(got.detach(), expected.detach(), "f32", 16)
        assert got.is_contiguous() or not batch_first
        wanted = torch.autograd.grad(expected.square().sum(), [*own.parameters(), *leaves])
        for found, exact in zip(torch.autograd.grad(got.square().sum(), [*module.parameters(), *leaves]), wanted, strict=True):
            assert_close(found, exact, "f32", 100)


def test_dropout_of_attention_is_its_own() -> None:
    module = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True)
    kpt.replace_modules(module)
    torch.manual_seed(3)
    first, second = (module(X, X, X, need_weights=False)[0] for _ in range(2))
    assert not torch.equal(first, second)
    module.eval()
    first, second = (module(X, X, X, need_weights=False)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param((X[..., :8],) * 3, id="too narrow"),
        pytest.param((X, X[:2], X[:2]), id="another batch"),
        pytest.param((X, X, X[:, :3]), id="fewer values than keys"),
    ],
)
def test_what_does_not_fit_is_refused_as_by_pytorch(given: tuple[torch.Tensor, ...]) -> None:
    own = nn.MultiheadAttention(16, 2, batch_first=True)
    module = copy.deepcopy(own)
    kpt.replace_modules(module)
    errors = []
    for m in (own, module):
        with pytest.raises((AssertionError, RuntimeError)) as refused:
            m(*given, need_weights=False)
        errors.append((refused.type, str(refused.value)))
    assert errors[0] == errors[1]


def halves(module: nn.MultiheadAttention) -> None:
    module.num_heads = 4


def a_key_of_zeros(module: nn.MultiheadAttention) -> None:
    module.add_zero_attn = True


def a_scale(module: nn.MultiheadAttention) -> None:
    nn.utils.parametrizations.spectral_norm(module.out_proj)


@pytest.mark.parametrize("change", [halves, a_key_of_zeros, a_scale])
def test_attention_that_was_changed_after_all(change: Any) -> None:
    """A weight that is made anew whenever it is asked for is asked for as often as by PyTorch."""
    got = []
    for replaced in (True, False):
        torch.manual_seed(20)
        module = nn.MultiheadAttention(16, 2, batch_first=True)
        if replaced:
            kpt.replace_modules(module)
        change(module)
        got.append((module(X, X, X, need_weights=False)[0].detach(), *module.buffers()))
    for found, wanted in zip(*got, strict=True):
        assert_close(found, wanted, "f32", 16)


def test_what_is_no_batch_is_pytorchs() -> None:
    own = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    module = copy.deepcopy(own)
    kpt.replace_modules(module)
    for x in (X[0], X[:0]):
        assert_close(module(x, x, x, need_weights=False)[0].detach(), own(x, x, x, need_weights=False)[0].detach(), "f32", 16)


def test_attention_weights_stay_pytorchs() -> None:
    own = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    module = copy.deepcopy(own)
    assert "stays PyTorch's: calls that ask for attention weights" in str(kpt.replace_modules(module))
    reason = "nn.MultiheadAttention: attention weights are asked for"
    before = counters()["flash_attention"]["fallbacks"].get(reason, 0)
    for got, expected in zip(module(X, X, X), own(X, X, X), strict=True):
        assert torch.equal(got, expected)
    assert counters()["flash_attention"]["fallbacks"][reason] == before + 1


@pytest.mark.parametrize("name", ["add_bias_kv", "add_zero_attn"])
def test_attention_that_appends_keys_stays(name: str) -> None:
    (skipped,) = kpt.replace_modules(nn.MultiheadAttention(16, 2, **{name: True})).skipped
    assert skipped.reason == f"it has {name}"


def encoder(**options: Any) -> Any:
    torch.manual_seed(20)
    layer = nn.TransformerEncoderLayer(16, 2, 32, **{"batch_first": True, **options})
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


LAYERS: dict[str, tuple[dict[str, Any], int]] = {
    "relu": ({}, 2),
    "gelu, norms first": ({"activation": "gelu", "norm_first": True}, 2),
    "a module": ({"activation": nn.SiLU()}, 2),
    "a function that the op has not": ({"activation": torch.sin}, 0),
    "heads that are odd, batch last": ({"batch_first": False, "bias": False}, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_encoder_layers_call_their_parts_in_eval_too(name: str) -> None:
    options, fused = LAYERS[name]
    own, module = encoder(**options), encoder(**options)
    kpt.replace_modules(module)
    given = X.transpose(0, 1) if "batch_first" in options else X
    for masks in ({}, {"src_key_padding_mask": padding(3, 5)}, {"mask": CAUSAL, "is_causal": True}):
        before = [sum(served(op).values()) for op in ("flash_attention", "linear_act", "layer_norm")]
        with torch.no_grad():
            assert_close(module(given, **masks), own(given, **masks), "f32", 32, scale=3.0)
        after = [sum(served(op).values()) for op in ("flash_attention", "linear_act", "layer_norm")]
        assert [a - b for a, b in zip(after, before, strict=True)] == [2, fused, 4]
    for m in (own, module):
        m.train()
        for part in m.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            if isinstance(part, nn.MultiheadAttention):
                part.dropout = 0.0
        m(given).square().mean().backward()
    for a, b in zip(module.parameters(), own.parameters(), strict=True):
        assert_close(a.grad, b.grad, "f32", 32, scale=max(float(b.grad.abs().max()), 1e-3))
    own.eval()
    assert_close(pickle.loads(pickle.dumps(module)).eval()(given), own(given), "f32", 32, scale=3.0)
    kpt.restore_modules(module)
    assert {type(m) for m in module.modules()} == {type(m) for m in own.modules()}


def test_encoders_compile_into_one_graph() -> None:
    torch._dynamo.reset()
    own, module = encoder(), encoder()
    kpt.replace_modules(module)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_close(compiled(X).detach(), own(X).detach(), "f32", 32, scale=3.0)


def test_nested_tensors_and_watched_layers_go_pytorchs_way() -> None:
    own, module, seen = encoder(), encoder(), []
    for m in (own, module):
        m.use_nested_tensor = True
    kpt.replace_modules(module)
    with torch.no_grad():
        masks = {"src_key_padding_mask": padding(3, 5)}
        before = attended()
        assert torch.equal(module(X, **masks), own(X, **masks))
        assert attended() == before
        assert counters()["flash_attention"]["fallbacks"]["nn.TransformerEncoderLayer: tensors are nested"]
        before = sum(served("linear_act").values())
        module.layers[0].linear1.register_forward_hook(lambda *_: seen.append(1))
        assert_close(module(X), own(X), "f32", 32, scale=3.0)
    assert seen == [1]
    assert sum(served("linear_act").values()) == before + 1


def test_decoders() -> None:
    torch.manual_seed(20)
    own = nn.Transformer(16, 2, 1, 1, 32, batch_first=True).eval()
    module = copy.deepcopy(own)
    kpt.replace_modules(module)
    before = attended(), sum(served("linear_act").values())
    assert_close(module(X, X[:, :3]).detach(), own(X, X[:, :3]).detach(), "f32", 32, scale=3.0)
    assert (attended() - before[0], sum(served("linear_act").values()) - before[1]) == (3, 2)
