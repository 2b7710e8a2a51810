# triton: y1 has 6 wrong elements of 6, the first at (0, 0): -inf, right is 1
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="K", x2="K M", x3="K", x4="M", y1="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, y1: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), "N"):
        v1 = kd.where((x1[:][None, :, None] < x2[:, m][:, None, :]), x3[:][:, None, None], 0.0)
        v2 = (x4[m] + 1.0)
        y1[n, m] = ((x4[m] + kd.sum(kd.max(v1, axis=-2), axis=-2)) + v2)


CALL = Call(
    tensors=(Tensor('x1', ('K',), 'i32', layout=Layout(order=(0,), gap=0)), Tensor('x2', ('K', 'M'), 'i32', layout=Layout(order=(0, 1), gap=0)), Tensor('x3', ('K',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x4', ('M',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('N', 'M'), 'f32', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 3, 'N': 2, 'K': 0},
    loops=(('M', True, 0), ('N', False, 0)),
    refusing=('numpy', 'triton', 'pallas'),
    tags=('empty', 'empty dim', 'one dim twice'),
)
