# triton: UnboundLocalError: cannot access local variable 'n2_start' where it is not associated with a value
# Found by drawing, mended since. Run it with: python -m tests.programs FILE
from tests.generated.arrays import Layout
from tests.programs.program import Call, Tensor

import kpt_dsl as kd


@kd.function
def kept(a, b):
    return kd.where(a > b, a, 0.0)

@kd.kernel(x1="N M K", x2="M", x3="M", x4="M", x5="D", x6="M D N", y1="N", y2="M D", x7="B", y3="M B")
def drawn(x1: kd.In, x2: kd.In, x3: kd.In, x4: kd.In, x5: kd.In, x6: kd.In, y1: kd.Out, y2: kd.Out, x7: kd.In, y3: kd.Out, count1: kd.Int, scale1: kd.Float, apply1: kd.Static) -> None:
    for m in kd.parallel("M"):
        v1 = ((x1[:, m, x2[m]].to(kd.i32) // 7) + 0.0)
        v2 = (x1[:, m, count1] + 0.0)
        v1, v2 = v2, (v1 + v2)
        v3 = kd.where((scale1 != scale1), (x3[m] + x3[kd.size("M") - 1]), scale1)
        acc1 = kd.zeros(["K"])
        acc2 = kd.full(["D"], -kd.inf)
        for n1 in kd.sequential(kd.tile("N"), stop=3):
            acc3 = kd.zeros([n1])
            seen1 = kd.full([], 0, kd.i32)
            for n2 in kd.sequential(kd.tile("N"), start=n1.start - 5):
                acc3 = acc3 + kd.sum(kd.where((n2.index[None, :] >= n1.index[:, None] - 5), ((x1[n2, m, x2[m]][None, :] - x1[n1, m, kd.size("K") - 1][:, None]) + 0.0), 0.0), axis=-1)
                acc2 = kd.maximum(acc2, kd.max(kd.max(kd.where((n2.index[None, None, :] >= n1.index[None, :, None] - 5), (((x6[kd.size("M") - 1, :, n2] - kd.where((x5[:] > x5[:])[:, None], x6[m, :, n2], 0.0))[:, None, :] * apply1(kd.minimum(x6[m, 1, n1][None, :], x5[:][:, None]), x5[:][:, None])[:, :, None]) + 0.0), -kd.inf), axis=2), axis=-1))
            acc1 = acc1 + kd.sum((((kd.full(["K", n1], scale1) + 0.0) + acc3[None, :]) + seen1), axis=-1)
            acc2 = kd.maximum(acc2, kd.max((kd.maximum(x5[:][None, :], (kd.full([n1], m, kd.i32) % 16).to(kd.f32)[:, None]) + 0.0), axis=0))
        y1[:] += (((((x6[m, 0, :] * x1[:, m, 0]) + 0.0) + v3) + kd.min(acc1, axis=-1)) + kd.min(acc2, axis=0))
        y2[m, :] = (acc2 <= acc2)
        y3[m, :] = kd.maximum(kd.minimum(kd.full(["B"], scale1), x7[:]), x7[:])


CALL = Call(
    tensors=(Tensor('x1', ('N', 'M', 'K'), 'f32', layout=Layout(order=(0, 1, 2), gap=0)), Tensor('x2', ('M',), 'i32', fill='index', most=1, layout=Layout(order=(0,), gap=0)), Tensor('x3', ('M',), 'f16', grain=-2, layout=Layout(order=(0,), gap=1)), Tensor('x4', ('M',), 'i32', fill='length', most=3, layout=Layout(order=(0,), gap=0)), Tensor('x5', ('D',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('x6', ('M', 'D', 'N'), 'f16', grain=-1, layout=Layout(order=(0, 1, 2), gap=3)), Tensor('y1', ('N',), 'f32', role='out', layout=Layout(order=(0,), gap=0), added=True), Tensor('y2', ('M', 'D'), 'bool', role='out', layout=Layout(order=(0, 1), gap=0)), Tensor('x7', ('B',), 'f32', layout=Layout(order=(0,), gap=0)), Tensor('y3', ('M', 'B'), 'f32', role='out', layout=Layout(order=(0, 1), gap=0))),
    extents={'M': 7, 'N': 3, 'K': 1, 'D': 2, 'B': 17},
    scalars={'count1': 0, 'scale1': 1.0},
    statics={'apply1': 'kept'},
    functions=('apply1',),
    loops=(('M', False, 0), ('N', True, 1), ('N', True, 2)),
    refusing=('numpy', 'triton', 'pallas'),
    seed=142,
    tags=('cast to int', 'loaded index', 'int index', 'narrow', 'bounds', 'loaded bound', 'loop in a loop', 'tile bounds', 'one dim twice', 'helper', 'static function', 'cast', 'addition'),
)
