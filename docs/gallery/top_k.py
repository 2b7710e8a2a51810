"""The largest elements of each row."""

import kpt_dsl as kd


@kd.kernel(x="M N", values="M K", places="M K")
def top_k(x: kd.In, values: kd.Out, places: kd.Out, count: kd.Static) -> None:
    """torch.topk(x, count): of equal elements the first comes first. Rows hold neither NaN nor minus infinity."""
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :].to(kd.f32)
        for i in kd.range(count):
            at = kd.argmax(row, axis=1)
            values[m, i] = kd.max(row, axis=1)
            places[m, i] = at
            row = kd.where(kd.index("N")[None, :] == at[:, None], -kd.inf, row)
