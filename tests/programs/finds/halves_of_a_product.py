# triton: a product wants 16 lanes along a dim of two, which is then split, and joined.
# Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.function
def blend(a, b):
    both = a + b
    return kd.maximum(both, a - b)

@kd.kernel(x1="N M", x2="M", x3="M", x4="N M", x5="K", x6="N K", x7="D", y1="N M", y2="N M")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, x7: kd.In, y1: kd.Out, y2: kd.Out, scale1: kd.Float, scale2: kd.Float, scale3: kd.Float, apply1: kd.Static, flag1: kd.Static) -> None:
    for m, n in kd.parallel("M", "N"):
        v1 = (apply1(x1[n, :], x2[:]) + 0.0)
        if flag1 is True:
            v1 = v1 + 1.0
        elif isinstance(flag1, float):
            v1 = v1 + 2.0
        else:
            v1 = v1 + 3.0
        v2 = (kd.minimum(x3[m], x3[m]) >= 2.0)
        acc1 = kd.zeros(["N", "M"])
        seen1 = kd.full([], 0, kd.i32)
        for n1 in kd.sequential(kd.tile("N")):
            acc1 = acc1 + kd.sum((kd.where((kd.index("N")[None, :, None] < x4[n1, :][:, None, :]), 1.0, 0.0) + 0.0), axis=0)
            seen1 = kd.maximum(seen1, n1.before + n1.count)
        first1, second1 = kd.split(kd.dot(x6[:, :].T, kd.minimum(kd.maximum(kd.full(["N", "D"], scale1), -8.0), 8.0).to(kd.f8e4m3)).T)
        pair1 = kd.join((first1 + 0.0), (kd.min(kd.full(["M", "D"], scale2), axis=0) + 0.0), "K")
        y1[n, m] = ((((((x5[1].to(kd.i32) << 3) + kd.max(v1, axis=0)) + kd.where(v2, 1.0, 0.0)) + kd.max(kd.max(acc1, axis=1), axis=-1)) + seen1) + kd.min(kd.min(pair1, axis=-1), axis=0))
        y2[n, m] = scale3


CALL = Call(
    tensors=(Tensor('x1', ('N', 'M'), 'f16', layout=Layout(order=(0, 1), gap=0)), Tensor('x2', ('M',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x3', ('M',), 'f8e4m3', grain=-2, layout=Layout(order=(0,), gap=3)), Tensor('x4', ('N', 'M'), 'i8', layout=Layout(order=(1, 0), gap=3)), Tensor('x5', ('K',), 'f32', layout=Layout(order=(0,), gap=1)), Tensor('x6', ('N', 'K'), 'f8e4m3', grain=-2, layout=Layout(order=(0, 1), gap=3)), Tensor('x7', ('D',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y1', ('N', 'M'), 'f16', role='out', layout=Layout(order=(0, 1), gap=0)), Tensor('y2', ('N', 'M'), 'f32', role='out', layout=Layout(order=(1, 0), gap=1))),
    extents={'M': 3, 'N': 3, 'K': 2, 'D': 17},
    scalars={'scale1': 0.5, 'scale2': 0.5, 'scale3': 2.0},
    statics={'apply1': 'blend', 'flag1': True},
    functions=('apply1',),
    before=({'apply1': 'blend', 'flag1': 1}, {'apply1': 'blend', 'flag1': 1.0}),
    loops=(('M', False, 0), ('N', False, 0), ('N', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=254,
    tags=('helper', 'narrow', 'static function', 'static', 'one dim twice', 'bytes', 'halves', 'product', 'gather', 'cast to int', 'loaded index'),
)
