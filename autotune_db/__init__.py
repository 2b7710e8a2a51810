"""autotune_db: the config database of each device, and the tuner that fills it.

Dispatch asks ``choose`` which config an instance runs with; ``overlay`` decides for a while. Importing this package reads no
file and brings neither Optuna nor SQLAlchemy: the tuner's parts (``tune``, ``store``, ``offline``) are imported by name.
"""

from autotune_db.lookup import Answer, choose, forget, provider, use
from autotune_db.overlays import overlay

__all__ = ["Answer", "choose", "forget", "overlay", "provider", "use"]
