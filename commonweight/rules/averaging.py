"""How a stage's replicas add up their gradients: reduce-scatter, then all-gather, in one fixed order.

The gradient is one vector of float32: the parameters in code-point order of their names, each row-major. Who has a load
in the round is a **contributor**; the vector is cut into as many slices, and each contributor sums the slice of its
number. It adds the contributors' slices in order of their addresses, whatever order they come in, so that all members
end with the same bits, on any machine: an addition of two float32 is the same everywhere.

A slice travels as it is, or in a quarter of the bytes, as **int8** (`Training.averaging`): blocks of BLOCK numbers,
each as a multiple, from -127 to 127, of its block's scale, which is the block's largest magnitude over 127. What
rounding leaves out each contributor keeps, and adds to its gradient of the next round (error feedback, as in 1-bit SGD,
Seide et al. 2014, and arXiv 1901.09847): of what it sends to others, and, in the slice that it sums, of the sum. All
members, the one that has summed among them, take the sums as they travel, so they still end with the same bits; but
these depend on who has computed what, and when. A contributor without another one sends what it has: float32.
"""

from collections.abc import Sequence

from commonweight.rules.spec import Averaging

BLOCK = 256
"""Numbers with one scale."""
LEVELS = 127
"""Of either sign."""
_FLOAT_BYTES = 4


def slice_bounds(numbers: int, contributors: int, index: int) -> tuple[int, int]:
    """Where the slice that contributor `index` sums begins and ends, in a gradient of so many numbers."""
    if not 0 <= index < contributors:
        raise ValueError(f"slice {index} isn't one of {contributors}")
    return numbers * index // contributors, numbers * (index + 1) // contributors


def contributors(assignment: Sequence[str]) -> tuple[str, ...]:
    """Who has a load in a stage's round, in order of address. `assignment`: of each microbatch, who computes it."""
    return tuple(sorted(set(assignment)))


def slice_coding(averaging: Averaging, contributors: int) -> Averaging:
    """How slices travel in a round of so many contributors."""
    return averaging if contributors > 1 else "float32"


def slice_bytes(numbers: int, coding: Averaging) -> int:
    """The size of a slice of so many numbers as it travels."""
    if coding == "float32":
        return _FLOAT_BYTES * numbers
    return numbers + _FLOAT_BYTES * -(-numbers // BLOCK)
