# f64: y2 has 231 wrong elements of 272, the first at (0, 0, 0): inf, right is nan
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd

FACTOR1 = 3.0

@kd.function
def blend(a, b):
    both = a + b
    return kd.maximum(both, a - b)

@kd.kernel(x1="M", x2="N M", x3="M N", x4="N M", x5="K", x6="N K", x7="B", y1="B", y2="M N K")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, x7: kd.In, y1: kd.Out, y2: kd.Out, scale1: kd.Float, scale2: kd.Float, apply1: kd.Static) -> None:
    for m, n, k in kd.parallel(kd.tile("M"), kd.tile("N"), "K"):
        v1 = apply1(x1[m], 0.5)
        v2 = (m.index[None, None, :] * x2[n, :][:, :, None])
        v3 = (x3[m, n] + 0.0)
        v4 = (x4[n, m].T + 0.0)
        v3, v4 = v4, (v3 + v4)
        acc1 = kd.full([], kd.inf)
        for n1 in kd.sequential(kd.tile("N"), stop=16):
            acc1 = kd.minimum(acc1, kd.min(((kd.sum((x6[n1, k][None, :] + x4[:, 16][:, None]), axis=0) / 2) + 0.0), axis=0))
        y1[:] += kd.sum(kd.sum((kd.where(((x7[0] == kd.full([n, "B", m], scale1)) & (kd.full(["B", m], scale2)[None, :, :] > kd.full([n], scale1)[:, None, None])), FACTOR1, kd.full(["B", m], scale1)[None, :, :]) + 0.0), axis=0), axis=1)
        y2[m, n, k] = ((((kd.minimum(kd.maximum(v4, -8.0), 8.0) * v4) + v3) + v4) + acc1)


CALL = Call(
    tensors=(Tensor('x1', ('M',), 'f32', grain=-1, odd=True, layout=Layout(order=(0,), gap=3)), Tensor('x2', ('N', 'M'), 'i32', most=40, layout=Layout(order=(0, 1), gap=0)), Tensor('x3', ('M', 'N'), 'bf16', grain=-1, odd=True, layout=Layout(order=(0, 1), gap=3)), Tensor('x4', ('N', 'M'), 'f32', odd=True, layout=Layout(order=(0, 1), gap=0)), Tensor('x5', ('K',), 'i32', fill='length', most=16, layout=Layout(order=(0,), gap=0)), Tensor('x6', ('N', 'K'), 'f32', odd=True, layout=Layout(order=(0, 1), gap=1)), Tensor('x7', ('B',), 'f32', odd=True, layout=Layout(order=(0,), gap=0)), Tensor('y1', ('B',), 'f32', role='out', layout=Layout(order=(0,), gap=0), added=True), Tensor('y2', ('M', 'N', 'K'), 'f32', role='out', layout=Layout(order=(0, 1, 2), gap=3))),
    extents={'M': 17, 'N': 16, 'K': 1, 'B': 7},
    scalars={'scale1': 3.0, 'scale2': 0.0},
    statics={'apply1': 'blend'},
    functions=('apply1',),
    globals={'FACTOR1': 4.0},
    loops=(('M', True, 0), ('N', True, 0), ('K', False, 0), ('N', True, 3)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=177,
    tags=('odd numbers', 'helper', 'static function', 'one dim twice', 'narrow', 'bounds', 'loaded bound', 'addition', 'loaded index', 'global', 'globals'),
)
