# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.kernel(x1="M", y1="M")
def drawn(x1: kd.In, y1: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        v1 = kd.minimum(kd.maximum(kd.full([], 0.5), -8.0), 8.0).to(kd.f8e4m3)
        y1[m] = (x1[m] + v1)


CALL = Call(
    tensors=(Tensor('x1', ('M',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('M',), 'f32', role='out', layout=Layout(order=(0,), gap=0))),
    extents={'M': 3},
    loops=(('M', True, 0),),
    refusing=('numpy', 'triton', 'pallas'),
    tags=('cast',),
)
