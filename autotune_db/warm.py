"""What a search begins with besides the first config: what is known of this key, of its neighbours, and from a model."""

from autotune_db import environment, lookup
from autotune_db.key import key_of
from autotune_db.store import Store
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from kpt_dsl.targets import Target

NEIGHBOURS = 5
PREDICTED = 8
"""How many of each: enough to be useful, few enough to leave the search its own trials."""


def warm_starts(instance: Instance, target: Target, store: Store | None) -> list[Config]:
    """Configs worth trying first, the most promising first."""
    near = lookup.neighbours(instance, target, NEIGHBOURS)
    if store is None:
        return near
    key = key_of(instance, target.name, target.backend, environment.compiler(target.backend))
    ranked = sorted(
        (t.trial for t in store.trials(key) if t.trial.outcome == "predicted"),
        key=lambda trial: trial.cost,
    )
    predicted = dict.fromkeys(trial.config for trial in ranked)
    return list(dict.fromkeys([*near, *list(predicted)[:PREDICTED]]))
