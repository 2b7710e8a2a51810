"""``kpt-tune explain``: which config dispatch would use, and how that is known."""

from typing import Any

from autotune_db import lookup
from autotune_db.key import key_of
from kpt.cli import options, output, select
from kpt.cli.place import place
from kpt_dsl.classes import extents
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.targets import Target


def explain(
    op: options.Ops = None,
    kernel: options.Kernel = None,
    preset: options.Preset = None,
    shapes: options.Shapes = None,
    dtype: options.Dtypes = None,
    flags: options.Flags = None,
    target: options.Target = None,
    device: options.Device = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Tell which config dispatch uses for given shapes, and where it comes from.

    Provenance: *measured* (your database), *imported* (into it), *shipped* (with kpt), *predicted* (by a model), *rule* (the
    first config); a *sibling* is an entry for a similar key. *for* says which extents share the config, and *binary* names the
    generated text: calls with the same one share what was compiled. *microseconds* were taken *at* these extents.

    Example:

        kpt-tune explain --op layer_norm --shapes "M=8192,N=4096" --target nvidia-h200
    """
    if db:
        lookup.use(db)
    where = place(target, device).target
    instances = select.instances(op or [], kernel, preset, shapes or [], dtype or [], flags or [], where)
    found = [_explained(instance, where) for instance in instances]
    if json:
        output.as_json(found)
        return
    for one in found:
        output.table(("", ""), [(name, value) for name, value in one.items() if name not in ("key", "config")])


def _explained(instance: Instance, target: Target) -> dict[str, Any]:
    from autotune_db import environment

    answer = lookup.choose(instance, target)
    device = environment.device_name(target)
    key = key_of(instance, device, target.backend, environment.compiler(target.backend))
    return {
        "problem": key.title,
        "device": device,
        "compiler": key.compiler,
        "runs with": str(answer.config),
        "known from": answer.source,
        "for": extents(instance, target),
        "binary": emit(instance, target, answer.config).digest,
        "microseconds": answer.entry.microseconds if answer.entry else None,
        "at": (answer.entry and output.extents(answer.entry)) or None,
        "id": key.digest,
        "key": key.to_dict(),
        "config": dict(answer.config),
    }
