"""``kpt-tune targets``: the chips that kpt generates and tunes for."""

from kpt.cli import options, output
from kpt_dsl import targets as known


def targets(json: options.Json = False) -> None:
    """List the chips that kpt generates code and tunes for."""
    chips = [known.get(name) for name in known.names()]
    if json:
        output.as_json(
            [
                {"name": t.name, "backend": t.backend, "vendor": t.vendor, "arch": t.arch, "dtypes": sorted(t.dtypes)}
                for t in chips
            ]
        )
        return
    rows = [(t.name, t.backend, t.arch, t.cores, f"{t.bandwidth_bytes_per_s / 1e12:.2f}", _fastest(t)) for t in chips]
    output.table(("target", "backend", "arch", "cores", "TB/s", "peak TFLOP/s"), rows, numbers=("cores", "TB/s"))


def _fastest(target: known.Target) -> str:
    return ", ".join(f"{dtype} {rate / 1e12:.4g}" for dtype, rate in target.flops_per_s.items())
