"""Memory for packed weights and for caches, from the system itself: in large pages where it has them.

A page that nobody has written costs nothing, and a chunk goes back as a whole when the last who took of it is gone. An
allocator of small things would keep what it once had.
"""

import ctypes
import mmap

CHUNK_BYTES = 32 << 20
_ALIGNMENT = 64


class Arena:
    """Hands out zeroed memory on borders of 64 bytes, out of chunks of 32 MiB; what is larger has one of its own."""

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def take(self, num_bytes: int) -> "ctypes.Array[ctypes.c_uint8]":
        """Lives for as long as what it returns does. Raises: MemoryError."""
        kind = ctypes.c_uint8 * num_bytes
        if num_bytes > CHUNK_BYTES:
            return kind.from_buffer(_chunk(num_bytes))
        if self._chunk is None or self._used + num_bytes > CHUNK_BYTES:
            self._chunk, self._used = _chunk(CHUNK_BYTES), 0
        begin = self._used
        self._used = -(-(begin + num_bytes) // _ALIGNMENT) * _ALIGNMENT
        return kind.from_buffer(self._chunk, begin)


def _chunk(num_bytes: int) -> mmap.mmap:
    try:
        chunk = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no {num_bytes} bytes: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            chunk.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel that was built without them
            return chunk
    return chunk
