"""Arrays of a payload as one block of bytes, with references that a page can follow."""

import base64
import gzip
from typing import Any

import numpy as np

CODES = {"u1": np.uint8, "u2": np.uint16, "i2": np.int16, "i4": np.int32, "f2": np.float16,
         "f4": np.float32}  # fmt: skip


class Packer:
    """Collects arrays; each becomes `{"at", "dtype", "shape"}`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, array: Any) -> dict[str, Any] | None:
        """The reference of an array; None stays None. Floats become float32."""
        if array is None:
            return None
        array = np.ascontiguousarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        elif array.dtype == bool:
            array = array.astype(np.uint8)
        elif array.dtype == np.int64:
            array = array.astype(np.int32)
        code = f"{array.dtype.kind}{array.dtype.itemsize}"
        if code not in CODES:
            raise TypeError(f"arrays of {array.dtype} are not packed")
        at = self._size
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        pad = -len(data) % 8  # typed arrays begin at multiples of their width
        self._parts.append(data + bytes(pad))
        self._size += len(data) + pad
        return {"at": at, "dtype": code, "shape": list(array.shape)}

    def packed(self) -> bytes:
        """All arrays, compressed."""
        return gzip.compress(b"".join(self._parts), compresslevel=6, mtime=0)


def as_text(data: bytes) -> str:
    """Bytes as text that a page can hold."""
    return base64.b64encode(data).decode("ascii")
