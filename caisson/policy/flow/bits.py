"""Sets of small numbers as the bits of one integer: union and intersection cost next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def of(numbers: Iterable[int], size: int) -> int:
    """The set of some numbers, each below `size`."""
    made = bytearray(size // 8 + 1)
    for number in numbers:
        made[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(made, "little")


def numbers(bits: int) -> Iterator[int]:
    """The numbers in a set, ascending."""
    data = bits.to_bytes(bits.bit_length() // 8 + 1, "little")
    for place, byte in enumerate(data):
        if byte:
            for bit in range(8):
                if byte >> bit & 1:
                    yield place * 8 + bit


def lowest(bits: int) -> int:
    """The smallest number of a set that is not empty."""
    return (bits & -bits).bit_length() - 1
