"""What a compiler made of a kernel: the resources it takes and the forms its code went through. Knows no compiler."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_COUNTS = ("registers", "spills", "shared_bytes", "vmem_bytes", "cycles")


@dataclass(frozen=True)
class Report:
    """Resources of one compiled kernel; None for what the target does not have or its compiler does not tell.

    ``registers``: 32-bit registers a thread; ``spills``: bytes a thread keeps in memory because registers ran out;
    ``shared_bytes``: shared memory a block; ``vmem_bytes``: TPU vector memory; ``cycles``: the compiler's static estimate;
    ``seconds``: time the compiler took, 0 when the result came from the cache; ``forms``: form of the code ("source", "ttgir",
    "ptx", "mosaic", …) -> file that holds it.
    """

    target: str
    config: str
    registers: int | None = None
    spills: int | None = None
    shared_bytes: int | None = None
    vmem_bytes: int | None = None
    cycles: int | None = None
    seconds: float = 0.0
    forms: tuple[tuple[str, str], ...] = ()

    def text(self, form: str) -> str:
        """The code in one of its forms. Raises KeyError for an unknown form, FileNotFoundError once the cache dropped it."""
        return Path(dict(self.forms)[form]).read_text(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self) | {"forms": dict(self.forms)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Report":
        """What ``to_dict`` made. Raises TypeError or KeyError for anything else."""
        forms = values["forms"]
        counts = (values.get(name) for name in _COUNTS)
        texts = (values["target"], values["config"], *(forms.values() if isinstance(forms, dict) else (None,)))
        seconds = values.get("seconds", 0.0)
        if not (
            all(isinstance(text, str) for text in texts)
            and all(count is None or (type(count) is int and count >= 0) for count in counts)
            and isinstance(seconds, int | float)
        ):
            raise TypeError("not a report as it was written")
        return Report(**(values | {"forms": tuple(forms.items())}))

    def __str__(self) -> str:
        known = {
            "registers": self.registers, "spills": self.spills, "shared bytes": self.shared_bytes,
            "VMEM bytes": self.vmem_bytes, "cycles": self.cycles,
        }  # fmt: skip
        figures = ", ".join(f"{value:,} {name}" for name, value in known.items() if value is not None)
        return f"{self.target} [{self.config}]: {figures or 'no figures'}; compiled in {self.seconds:.1f} s"
