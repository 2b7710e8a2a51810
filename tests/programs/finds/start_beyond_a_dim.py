# triton: a loop that begins beyond its dim counted elements
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="N M", x2="N", x3="M D", x4="N M D", x5="M D", x6="B", x7="Q", x8="P", y1="N M K")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, x7: kd.In, x8: kd.In, y1: kd.Out, scale1: kd.Float) -> None:
    for m, n, k in kd.parallel(kd.tile("M"), "N", kd.tile("K")):
        v1 = ((x1[x2[n], m] + 3) < 4)
        v2 = (((x3[m, :] * 0.5) + x4[0, m, :]) + 0.0)
        v3 = (x5[m, :] + 0.0)
        v2, v3 = v3, (v2 + v3)
        v4 = (kd.minimum(x6[:], kd.minimum(kd.maximum(x6[:], -8.0), 8.0).to(kd.f32)) + 0.0)
        v5 = (kd.minimum(v4, x6[:]) + 0.0)
        v4, v5 = v5, (v4 + v5)
        acc1 = kd.zeros([m, "P"])
        for q1 in kd.sequential(kd.tile("Q")):
            acc1 = acc1 + kd.sum((kd.full([q1, m, "P"], scale1) + 0.0), axis=0)
        seen1 = kd.full([], 0, kd.i32)
        for m1 in kd.sequential(kd.tile("M"), start=20):
            v6 = kd.full(["D", m], kd.size("N"), kd.i32)
            seen1 += m1.count
        y1[n, m, k] = ((((-kd.full([m, k], scale1)).to(kd.i32) + kd.where(v1, 1.0, 0.0)[:, None]) + kd.sum(acc1, axis=1)[:, None]) + seen1)


CALL = Call(
    tensors=(Tensor('x1', ('N', 'M'), 'i32', layout=Layout(order=(0, 1), gap=0)), Tensor('x2', ('N',), 'i32', fill='index', most=2, layout=Layout(order=(0,), gap=0)), Tensor('x3', ('M', 'D'), 'i32', layout=Layout(order=(0, 1), gap=0)), Tensor('x4', ('N', 'M', 'D'), 'f16', odd=True, layout=Layout(order=(0, 1, 2), gap=0)), Tensor('x5', ('M', 'D'), 'f32', grain=-1, odd=True, layout=Layout(order=(0, 1), gap=0)), Tensor('x6', ('B',), 'f32', odd=True, layout=Layout(order=(0,), gap=0)), Tensor('x7', ('Q',), 'f32', odd=True, layout=Layout(order=(0,), gap=3)), Tensor('x8', ('P',), 'f32', odd=True, layout=Layout(order=(0,), gap=1)), Tensor('y1', ('N', 'M', 'K'), 'f32', role='out', layout=Layout(order=(0, 1, 2), gap=0))),
    extents={'M': 17, 'N': 2, 'K': 3, 'D': 16, 'B': 33, 'Q': 2, 'P': 1},
    scalars={'scale1': -1.5},
    loops=(('M', True, 0), ('N', False, 0), ('K', True, 0), ('Q', True, 3), ('M', True, 3)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=448,
    tags=('odd numbers', 'loaded index', 'narrow', 'cast', 'bounds', 'cast to int'),
)
