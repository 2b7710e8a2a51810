"""autotune_db: the config database of each device, and the tuner that fills it.

Dispatch asks ``choose`` which config a problem runs with; ``overlay`` decides for a while. Importing this package reads no
file and brings neither Optuna nor SQLAlchemy: the tuner's parts (``tune``, ``store``, ``offline``) are imported by name.
"""

from autotune_db.lookup import Answer, choose, forget, use
from autotune_db.overlay import overlay
from autotune_db.provider import provider

__all__ = ["Answer", "choose", "forget", "overlay", "provider", "use"]
