# pallas: TypeError: Value of type <class 'jax._src.interpreters.partial_eval.DynamicJaxprTracer'> is not iterable.
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="M", x2="N M K", y1="M", y2="N M")
def drawn(x1: kd.In, x2: kd.In, y1: kd.Out, y2: kd.Out, count1: kd.Int) -> None:
    for m in kd.parallel(kd.tile("M")):
        v1 = x1[:]
        v2 = (v1 + x1[:])
        v3 = (v1[None, :] - x1[m][:, None])
        acc1 = kd.zeros([m, "M"])
        for m1 in kd.sequential(kd.tile("M")):
            acc1 = acc1 + kd.sum((kd.minimum(x1[m][None, :, None], kd.maximum(x1[:][None, :], x2[count1, m1, 0][:, None])[:, None, :]) + 0.0), axis=0)
        y1[m] = kd.minimum(x1[m], x1[m])
        y2[:, m] = x2[:, m, kd.size("K") - 1]


CALL = Call(
    tensors=(Tensor('x1', ('M',), 'bf16', layout=Layout(order=(0,), gap=0)), Tensor('x2', ('N', 'M', 'K'), 'f32', layout=Layout(order=(0, 1, 2), gap=0)), Tensor('y1', ('M',), 'f32', role='out', layout=Layout(order=(0,), gap=0)), Tensor('y2', ('N', 'M'), 'f8e4m3', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 16, 'N': 2, 'K': 3},
    scalars={'count1': 0},
    loops=(('M', True, 0), ('M', True, 1)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=1,
    tags=('empty', 'narrow', 'one dim twice', 'int index'),
)
