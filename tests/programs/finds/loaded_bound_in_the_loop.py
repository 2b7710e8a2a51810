# gluon: KeyError: Load of a bound, in the loop itself
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(q="B M D", k="B N D", w="B N D", x1="B", y1="B M D")
def drawn(q: kd.In, k: kd.In, w: kd.In, x1: kd.In, y1: kd.Out) -> None:
    for b, m in kd.parallel("B", kd.tile("M")):
        query = q[b, m, :]
        acc, total = kd.zeros([m, "D"]), kd.zeros([m])
        top = kd.full([m], -kd.inf)
        for n in kd.sequential(kd.tile("N"), stop=x1[b]):
            scores = kd.dot(query, k[b, n, :].T)
            scores = scores * 0.125
            above = kd.maximum(top, kd.max(scores, axis=1))
            shift = kd.where(above == -kd.inf, 0.0, above)
            p = kd.exp(scores - shift[:, None])
            keep = kd.exp(top - shift)
            total = total * keep
            top = above
            total = total + kd.sum(p, axis=1)
            acc = kd.dot(p.to(kd.bf16), w[b, n, :], acc * keep[:, None])
        y1[b, m, :] = (acc / kd.where(total == 0.0, 1.0, total)[:, None])


CALL = Call(
    tensors=(Tensor('q', ('B', 'M', 'D'), 'bf16', most=1, layout=Layout(order=(0, 1, 2), gap=0)), Tensor('k', ('B', 'N', 'D'), 'bf16', most=1, layout=Layout(order=(0, 1, 2), gap=0)), Tensor('w', ('B', 'N', 'D'), 'bf16', most=1, layout=Layout(order=(0, 1, 2), gap=0)), Tensor('x1', ('B',), 'i32', fill='length', most=64, layout=Layout(order=(0,), gap=0)), Tensor('y1', ('B', 'M', 'D'), 'bf16', role='out', layout=Layout(order=(0, 1, 2), gap=0), off=0.015625)),
    extents={'M': 64, 'N': 64, 'D': 64, 'B': 1},
    loops=(('B', False, 0), ('M', True, 0), ('N', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    tags=('smooth', 'products', 'batch', 'loaded bound'),
)

