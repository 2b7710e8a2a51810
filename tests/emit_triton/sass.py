"""Machine code of Hopper, read as far as is needed to see where the operands of its products lie."""

import re
import subprocess
from pathlib import Path

import triton

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
LINE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;")
REGISTER = re.compile(r"-?(U?R\d+)(\.reuse)?$")
COPIES = ("UMOV", "MOV", "R2UR", "IMAD.U32", "IMAD.MOV")
SUMS = ("UIADD3", "IADD3", "VIADD")
Instruction = tuple[str, str, list[str]]


def lost_addresses(cubin: Path) -> list[str]:
    """The operands of matrix products whose address is made of one that was loaded for something else, under a condition.

    Each address in shared memory is cut out of a pointer and added to. Followed back to the last instruction in the text that
    made it, so that what two ways through a program make differently is seen by one of them only.
    """
    listing = subprocess.run([TOOL, "-c", cubin], capture_output=True, text=True, check=True).stdout
    found = [m for m in map(LINE.match, listing.splitlines()) if m]
    program = [((m[1] or "").strip(), m[2], [a.strip() for a in m[3].split(",")]) for m in found]
    lost = []
    for at, (_, operation, operands) in enumerate(program):
        if not operation.startswith("HGMMA"):
            continue
        descriptor = next((a for a in operands if a.startswith("gdesc")), None)
        if descriptor is None:
            continue
        first = int(re.search(r"UR(\d+)", descriptor)[1])  # type: ignore[index]
        # Of the four registers the first two describe the first operand, where that is not in registers.
        registers = (first + 2,) if REGISTER.match(operands[1]) else (first, first + 2)
        origins = {f"UR{n}": _condition(program, at, f"UR{n}") for n in registers}
        lost += [f"{operation} {' '.join(operands)}: {n} is made of {o}" for n, o in origins.items() if o]
    return lost


def _condition(program: list[Instruction], at: int, register: str) -> str:
    """The conditional load that a register goes back to, else ""."""
    while True:
        at = next((i for i in range(at - 1, -1, -1) if _makes(program[i], register)), -1)
        if at < 0:
            return "nothing"
        condition, operation, operands = program[at]
        if operation.startswith("R2UR") and condition:
            return f"{condition} {operation} {' '.join(operands)}"
        if not operation.startswith((*COPIES, *SUMS)):
            return ""
        sources = [m[1] for m in map(REGISTER.match, operands[1:]) if m]
        if not sources:
            return ""
        kind, number = re.match(r"(U?R)(\d+)", sources[0]).groups()  # type: ignore[union-attr]
        register = f"{kind}{int(number) + (register != operands[0])}" if ".64" in operation else sources[0]


def _makes(instruction: Instruction, register: str) -> bool:
    _, operation, operands = instruction
    if operation.startswith(("ST", "UTMA", "SYNCS", "BAR", "BRA", "HGMMA")):
        return False
    made = operands[1] if re.match(r"U?P\w+$", operands[0]) and len(operands) > 1 else operands[0]
    if not REGISTER.match(made):
        return False
    number = int(re.search(r"\d+", made)[0])  # type: ignore[index]
    wide = ".64" in operation or operation.startswith("CS2R")
    kind = made.rstrip("0123456789")
    return register in {made, f"{kind}{number + 1}" if wide else made}
