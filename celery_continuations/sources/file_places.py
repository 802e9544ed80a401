"""Places in a text file, as ints: a byte, or a number of characters after a byte that a decoder began at."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ONE_CHARACTER", "Place"]

# Bits of each part, in the order of io.TextIOWrapper.tell(), whose places release 0.1 saved.
_START, _STATE, _FEED, _SKIP, _AT_END = 64, 32, 32, 32, 8


class Place(NamedTuple):
    """A place in a file whose characters do not tell how many bytes they take.

    Attributes:
        start: the byte that decoding begins at.
        state: of the decoder there.
        feed: how many bytes to decode from there on.
        skip: how many of their characters come before the place.

    >>> Place(16384, skip=3, feed=8192).packed() == Place.of(Place(16384, skip=3, feed=8192).packed()).packed()
    True
    >>> Place.of(7)
    Place(start=7, state=0, feed=0, skip=0)
    """

    start: int
    state: int = 0
    feed: int = 0
    skip: int = 0

    @classmethod
    def of(cls, packed: int) -> Place:
        """Unpack a place."""
        start, rest = _split(packed, _START)
        low, rest = _split(rest, _STATE)
        feed, rest = _split(rest, _FEED)
        skip, rest = _split(rest, _SKIP)
        return cls(start, low | rest >> _AT_END << _STATE, feed, skip)

    def packed(self) -> int:
        """Return the place as one int; without a state and characters it is the byte."""
        high, low = self.state >> _STATE, self.state & ((1 << _STATE) - 1)
        packed = high << _AT_END << _SKIP | self.skip
        return ((packed << _FEED | self.feed) << _STATE | low) << _START | self.start


#: What one more skipped character adds to a packed place.
ONE_CHARACTER = 1 << (_START + _STATE + _FEED)


def _split(packed: int, bits: int) -> tuple[int, int]:
    return packed & ((1 << bits) - 1), packed >> bits
