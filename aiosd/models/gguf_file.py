"""What a .gguf file's beginning says of it, without loading it: github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_HEADER = 64 * 1024 * 1024
"""Bytes that are read; words and merges of the largest vocabularies take 15 MB. Beyond it nothing is said."""
DEEPEST = 2
"""Arrays in arrays. No model has any."""
ALIGNMENT = 32
"""Of the tensors' data, where `general.alignment` does not say."""

_PLAIN = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type; a string is 8, an array 9."""
_STRING, _ARRAY = 8, 9

# fmt: off
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56),
    30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}
# fmt: on
"""Numbers in a block of a tensor, and its bytes, by ggml's type. Of a type that is newer only the place is known."""


def damage(path: Path) -> str | None:
    """Why no program can load this file; None where it is whole, as far as its header tells. Blocks, for up to 0.2 s.

    Raises OSError."""
    with path.open("rb") as file:
        header = _Header(file.read(MOST_HEADER))
        size = file.seek(0, 2)
    if not header.data.startswith(MAGIC):
        return f"{path} is no GGUF file"
    try:
        needed = header.end()
    except struct.error:
        return None if size > len(header.data) else f"{path} is cut off: it ends within its header"
    except ValueError as exc:
        return f"{path} is damaged: {exc}"
    if needed > size:
        return f"{path} is cut off: it has {size:,} bytes of {needed:,}"
    return None


class _Header:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self._at = len(MAGIC)

    def end(self) -> int:
        """Bytes that the file must have. Raises struct.error where the header is cut, ValueError where it is none."""
        (version,) = self._take("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version} of GGUF is not known")
        tensors, pairs = self._take("<QQ")
        alignment = ALIGNMENT
        for _ in range(pairs):
            key = self._string()
            (type,) = self._take("<I")
            if key == b"general.alignment" and type == 4:
                (alignment,) = self._take("<I")
                if not alignment:
                    raise ValueError("its alignment is 0")
            else:
                self._skip(type)
        needed = 0
        for _ in range(tensors):
            self._string()
            (dimensions,) = self._take("<I")
            if dimensions > 4:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            numbers = 1
            for each in self._take(f"<{dimensions}Q"):
                numbers *= each
            type, offset = self._take("<IQ")
            per_block, block_bytes = BLOCKS.get(type, (1, 0))
            needed = max(needed, offset + numbers // per_block * block_bytes)
        return -(-self._at // alignment) * alignment + needed if tensors else self._at

    def _take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self.data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> bytes:
        (length,) = self._take("<Q")
        self._past(length)
        return self.data[self._at - length : self._at]

    def _past(self, length: int) -> None:
        self._at += length
        if self._at > len(self.data):
            raise struct.error

    def _skip(self, type: int, depth: int = 0) -> None:
        """A value, `depth` arrays deep."""
        if (size := _PLAIN.get(type)) is not None:
            self._past(size)
        elif type == _STRING:
            self._string()
        elif type == _ARRAY:
            of, items = self._take("<IQ")
            if (size := _PLAIN.get(of)) is not None:
                self._past(size * items)
                return
            if depth == DEEPEST:
                raise ValueError("arrays stand in arrays in arrays")
            for _ in range(items):
                self._skip(of, depth + 1)
        else:
            raise ValueError(f"values of type {type} are not known")
