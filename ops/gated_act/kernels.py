"""The gate of an MLP and its gradients, written once for every device.

y = act(gate) * up (Shazeer 2020, arXiv:2002.05202), so that dgate = dy * up * act'(gate) and dup = dy * act(gate).
"""

import kpt_dsl as kd


@kd.kernel(gate="M N", up="M N", y="M N")
def gated_act_fwd(gate: kd.In, up: kd.In, y: kd.Out, activation: kd.Static) -> None:
    """y = activation(gate) * up, in float32 and rounded once."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = activation(gate[m, n].to(kd.f32)) * up[m, n]


@kd.kernel(dy="M N", gate="M N", up="M N", dgate="M N", dup="M N")
def gated_act_bwd(
    dy: kd.In, gate: kd.In, up: kd.In, dgate: kd.Out, dup: kd.Out, activation: kd.Static, gradient: kd.Static
) -> None:
    """dgate and dup, either of which may be left out. activation(gate) is made again, from the gate that is read anyway."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        slope, at = dy[m, n].to(kd.f32), gate[m, n].to(kd.f32)
        if dgate is not None:
            dgate[m, n] = gradient(slope * up[m, n], at)
        if dup is not None:
            dup[m, n] = slope * activation(at)
