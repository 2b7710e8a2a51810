"""Binaries made before they are called for: of every text that the classes of some instances have, by as many processes as
there are cores, into the cache on disk."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from autotune_db import jobs
from autotune_db.crew import Crew
from kpt_dsl import configs
from kpt_dsl.classes import samples
from kpt_dsl.emit import Source, emit
from kpt_dsl.errors import KptError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from kpt_dsl.targets import Target

Watch = Callable[[int, int], None]
"""Is told how many of how many binaries are done."""

_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Wanted:
    """An instance, and the config that dispatch takes for it."""

    instance: Instance
    config: Config


@dataclass
class Ahead:
    """What was made: ``wanted`` has an instance for each class and each text that this has; ``binaries`` how many are there
    now; ``failed`` kernels, and why they have none."""

    wanted: list[Wanted] = field(default_factory=list)
    binaries: int = 0
    failed: list[str] = field(default_factory=list)


def compile_ahead(
    instances: Iterable[Instance], target: Target, processes: int | None = None, watch: Watch | None = None
) -> Ahead:
    """Compile for a target all that the classes of instances need. ``processes``: by default one a core."""
    made = Ahead()
    texts: dict[Source, Wanted] = {}
    for instance in dict.fromkeys(instances):
        try:
            for one in samples(instance, target):
                wanted = Wanted(one, configs.choose(one, target)[0])
                texts.setdefault(emit(one, target, wanted.config), wanted)
                made.wanted.append(wanted)
        except KptError as error:
            made.failed.append(f"{instance}: {error}")
    each = list(texts.values())
    if watch is not None:
        watch(0, len(each))
    with Crew(min(processes or os.cpu_count() or 1, max(1, len(each)))) as crew:
        for number, wanted in enumerate(each):
            arguments = (wanted.instance, target.name, wanted.config)
            crew.submit(number, jobs.compile_one, *arguments, seconds=jobs.COMPILE_SECONDS)
        done = 0
        while crew.unfinished:
            for reply in crew.collect(_WAIT_SECONDS):
                done += 1
                if reply.failure:
                    wanted = each[int(str(reply.job))]
                    made.failed.append(f"{wanted.instance} with [{wanted.config}]: {reply.detail or reply.failure}")
                else:
                    made.binaries += 1
                if watch is not None:
                    watch(done, len(each))
    return made
