"""``kpt-tune run``: tunes instances one after another, on a device that is here or for one that is not."""

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Any

import typer

from autotune_db import lookup
from autotune_db.ledger import Watch
from autotune_db.result import Result
from autotune_db.store import Store
from autotune_db.workshop import Workshop
from kpt.cli import options, output, parse, select
from kpt.cli.model import calls_of
from kpt.cli.place import Place, place
from kpt.cli.progress import Bar
from kpt_dsl.errors import InputError, KptError
from kpt_dsl.instance import Instance

FAILED, INTERRUPTED = 1, 130

_log = logging.getLogger("kpt")


def run(
    calls: options.Calls = None,
    model: options.Model = None,
    batch: options.Batch = 1,
    length: options.Length = 2048,
    level: options.Level = "balanced",
    training: options.Training = False,
    op: options.Ops = None,
    kernel: options.Kernel = None,
    preset: options.Preset = None,
    shapes: options.Shapes = None,
    dtype: options.Dtypes = None,
    flags: options.Flags = None,
    target: options.Target = None,
    device: options.Device = None,
    budget: Annotated[str, typer.Option("--budget", help="Time to search, for each key.", metavar="60s")] = "60s",
    trials: Annotated[int, typer.Option("--trials", min=1, help="Configs to try at most, for each key.")] = 200,
    offline: Annotated[bool, typer.Option("--offline", help="Predict, even if the device is here.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the search and of the data.")] = 0,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Compiling at a time; by default one a core.")
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Tune kernels and store the winners.

    On a device that is here, candidates compile in parallel, are timed one by one and verified against float64, and the best
    must beat the first config in a final interleaved round. For a chip that is not here (`--target`), candidates compile for
    it, those that spill or do not fit are rejected, and a model ranks the rest: stored as *predicted*. Ctrl-C, as SIGTERM and
    SIGHUP do, ends the search; what was found goes through the final round and is stored.

    Examples:

        kpt-tune run --op flash_attention --shapes "B=4,H=32,G=8,M=4096,N=4096,D=128" --flags causal=true --budget 60s

        kpt-tune run --op linear_act --shapes "M=8192,N=14336,K=4096" --flags activation=gelu_tanh --dtype bf16 --dtype f16

        kpt-tune run --preset llama-8b --target amd-mi300x

        kpt-tune run --kernel package.module:softmax --shapes "M=4096,N=1024;M=1,N=1024" --json

        kpt-tune run --calls calls.json

        kpt-tune run --model meta-llama/Llama-3.2-1B --batch 4 --length 2048 --training

    With `--calls`, what a program called (`kpt.ops.recording`): what takes the most time first, and nothing that was measured.
    With `--model`, what it calls after `kpt.optimize` likewise: it is built from its config, and run without values.
    """
    seconds = parse.seconds(budget)
    where = place(target, device, offline)
    if db:
        lookup.use(db)
    called = select.loaded(calls)
    if model is not None:
        if calls is not None or len(dtype or []) > 1:
            raise InputError("--model goes without --calls, and with one --dtype at most")
        called, dtype = calls_of(model, batch, length, level, training, dtype[0] if dtype else None), None
    instances = select.instances(op or [], kernel, preset, shapes or [], dtype or [], flags or [], where.target, called)
    if called is not None:
        instances = _not_measured(instances, where)
    results: list[Result] = []
    failures: list[tuple[Instance, str]] = []
    with (
        Store(db) as store,
        Workshop(processes) as workshop,
        Bar(shown=not json) as bar,
        _stopping_as_ctrl_c_does() as signals,
    ):
        for number, instance in enumerate(instances, 1):
            watch = bar.of(f"[{number}/{len(instances)}] {instance}", seconds)
            try:
                results.append(_tuned(instance, where, store, seconds, trials, seed, workshop, watch))
            except Exception as error:  # also what happens between keys costs the one key
                _log.debug("tuning of %s failed", instance, exc_info=True)
                failures.append((instance, str(error) if isinstance(error, KptError) else repr(error)))
            except KeyboardInterrupt:
                failures.append((instance, "interrupted"))
                break
            if results and results[-1].interrupted:
                break
    _report(results, failures, json)
    unsaved = [result.unsaved for result in results if result.unsaved]
    if unsaved:
        print(f"kpt-tune: not stored: {unsaved[0]}", file=sys.stderr)
    if any(result.interrupted for result in results) or any(reason == "interrupted" for _, reason in failures):
        raise typer.Exit(128 + signals[0] if signals else INTERRUPTED)
    if failures or unsaved:
        raise typer.Exit(FAILED)


def _not_measured(instances: list[Instance], where: Place) -> list[Instance]:
    """Those that nobody measured; for a device that is not here, nor predicted."""
    enough = ("measured",) if where.device is not None else ("measured", "predicted")
    answers = [(instance, lookup.choose(instance, where.target)) for instance in instances]
    left = [instance for instance, answer in answers if answer.sibling or answer.provenance not in enough]
    if known := len(instances) - len(left):
        print(f"kpt-tune: {known} of {len(instances)} kernels are known and skipped", file=sys.stderr)
    return left


@contextlib.contextmanager
def _stopping_as_ctrl_c_does() -> Iterator[list[int]]:
    """SIGTERM of a scheduler, and SIGHUP of a terminal that closes, within the block; gives the signals that came."""
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    # One that is ignored, by nohup say, stays so.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [(n, signal.signal(n, stop)) for n in numbers]
    pool = logging.getLogger("sqlalchemy.pool")  # it tells, with a traceback, of a stop that came while it closed a connection
    level = pool.level
    pool.setLevel(logging.CRITICAL)
    try:
        yield came
    finally:
        pool.setLevel(level)
        for n, handler in before:
            signal.signal(n, handler)


def _tuned(
    instance: Instance,
    where: Place,
    store: Store,
    seconds: float,
    trials: int,
    seed: int,
    workshop: Workshop,
    watch: Watch,
) -> Result:
    from autotune_db.budget import Budget
    from autotune_db.offline import predict
    from autotune_db.tune import tune
    from autotune_db.warm import warm_starts

    common: dict[str, Any] = {
        "budget": Budget(seconds, trials),
        "warm": warm_starts(instance, where.target, store),
        "seed": seed,
        "workshop": workshop,
        "watch": watch,
    }
    if where.device is None:
        return predict(instance, where.target, store, **common)
    return tune(instance, where.target, store, device=where.device, **common)


def _report(results: list[Result], failures: list[tuple[Instance, str]], json: bool) -> None:
    if json:
        failed = [{"problem": str(instance), "error": reason} for instance, reason in failures]
        output.as_json({"results": [output.result_dict(result) for result in results], "failures": failed})
        return
    if results:
        output.table(
            ("key", "device", "config", "µs", "first µs", "speed-up", "known", "trials", "seconds"),
            [_row(result) for result in results],
            numbers=("µs", "first µs", "speed-up", "trials", "seconds"),
        )
    for result in results:
        if result.held:
            known = f"{result.held} of {len(result.trials)} configs"
            print(f"kpt-tune: {result.key.title}: {known} would be above what is believed, and count as that", file=sys.stderr)
    for instance, reason in failures:
        print(f"kpt-tune: {instance}: {reason}", file=sys.stderr)


def _row(result: Result) -> tuple[object, ...]:
    return (
        result.key.title,
        result.key.device,
        result.config,
        output.microseconds(result.microseconds),
        output.microseconds(result.first_microseconds),
        "" if result.speedup is None else f"{result.speedup:.2f}",
        result.origin,
        len(result.trials),
        f"{result.seconds:.0f}",
    )
