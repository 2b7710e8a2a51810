"""How tests have XLA compile what Pallas interprets."""

from kpt_dsl.runtime import pallas


def compile_quickly() -> None:
    """Each program is compiled once and run once. XLA's older emitters take a quarter of the time of those that fuse: 0.17 s
    for 0.63 s of attention in tiles, whose run takes 0.01 s."""
    pallas.INTERPRETING["xla_cpu_use_fusion_emitters"] = False
