"""How a stage's replicas add up their gradients: reduce-scatter, then all-gather, in one fixed order.

The gradient is one vector of float32: the parameters in code-point order of their names, each row-major. Who has a load
in the round is a **contributor**; the vector is cut into as many slices, and each contributor sums the slice of its
number. It adds the contributors' slices in order of their addresses, whatever order they come in, so that all members
end with the same bits, on any machine: an addition of two float32 is the same everywhere.
"""

from collections.abc import Sequence


def slice_bounds(numbers: int, contributors: int, index: int) -> tuple[int, int]:
    """Where the slice that contributor `index` sums begins and ends, in a gradient of so many numbers."""
    if not 0 <= index < contributors:
        raise ValueError(f"slice {index} isn't one of {contributors}")
    return numbers * index // contributors, numbers * (index + 1) // contributors


def contributors(assignment: Sequence[str]) -> tuple[str, ...]:
    """Who has a load in a stage's round, in order of address. `assignment`: of each microbatch, who computes it."""
    return tuple(sorted(set(assignment)))
