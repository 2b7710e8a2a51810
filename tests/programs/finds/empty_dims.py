# triton: y1 has 6 wrong elements of 6, the first at (0, 0): 0, right is 448
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.function
def blend(a, b):
    both = a + b
    return kd.maximum(both, a - b)

@kd.kernel(x1="M K", x2="M", x3="D", x4="N", x5="M", x6="B", x7="Q", y1="N M", y2="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, x7: kd.In, y1: kd.Out, y2: kd.Out, scale1: kd.Float, count1: kd.Int, scale2: kd.Float) -> None:
    for m, n in kd.parallel("M", "N"):
        v1 = (kd.sum((x1[:, :][:, None, :] + x1[m, :][None, :, None]), axis=1)[None, :, :] >= (-x2[:])[:, None, None])
        acc1 = kd.full(["D"], kd.inf)
        acc2 = kd.zeros(["B"])
        for d1 in kd.sequential(kd.tile("D"), start=x4[n]):
            acc1 = kd.minimum(acc1, kd.min(((x3[d1][None, :] - x3[:][:, None]) + 0.0), axis=1))
            acc2 = acc2 + kd.sum((kd.full([d1, "B"], scale1) + 0.0), axis=0)
        acc3 = kd.zeros(["K", "Q"])
        for k1 in kd.sequential(kd.tile("K"), start=0):
            v2 = kd.min(kd.dot(kd.minimum(kd.maximum(kd.full(["M", "Q"], scale1), -8.0), 8.0), kd.minimum(kd.maximum(kd.full(["Q", k1], scale1), -8.0), 8.0)), axis=0)
            acc3 = acc3 + kd.sum((((blend(kd.full(["Q", k1], scale1), kd.full(["Q", k1], scale2))[None, :, :] - kd.where((x1[m, :] < x1[m, :])[:, None], kd.full(["K", "Q"], scale1), 0.0)[:, :, None]) + 0.0) + v2[None, None, :]), axis=2)
        y1[n, m] = ((((kd.where((m <= 13), -1.0, x7[2]) + kd.min(kd.max(kd.sum(kd.where(v1, 1.0, 0.0), axis=2), axis=-1), axis=0)) + kd.sum(acc1, axis=-1)) + kd.min(acc2, axis=-1)) + kd.sum(kd.max(acc3, axis=1), axis=-1))
        y2[n, m] = (kd.size("N") > m)


CALL = Call(
    tensors=(Tensor('x1', ('M', 'K'), 'bf16', grain=-2, layout=Layout(order=(0, 1), gap=1)), Tensor('x2', ('M',), 'f32', grain=-1, layout=Layout(order=(0,), gap=0)), Tensor('x3', ('D',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x4', ('N',), 'i32', fill='length', most=0, layout=Layout(order=(0,), gap=0)), Tensor('x5', ('M',), 'i32', fill='length', most=0, layout=Layout(order=(0,), gap=0)), Tensor('x6', ('B',), 'f32', layout=Layout(order=(0,), gap=1)), Tensor('x7', ('Q',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('N', 'M'), 'f8e4m3', role='out', layout=Layout(order=(0, 1), gap=0)), Tensor('y2', ('N', 'M'), 'bool', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 2, 'N': 3, 'K': 0, 'D': 0, 'B': 0, 'Q': 3},
    scalars={'scale1': 2.0, 'count1': 0, 'scale2': 2.0},
    loops=(('M', False, 0), ('N', False, 0), ('D', True, 2), ('K', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=434,
    tags=('empty', 'one dim twice', 'empty dim', 'narrow', 'bounds', 'loaded bound', 'product', 'helper'),
)
