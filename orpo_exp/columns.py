"""Python's values as columns of Arrow and Parquet files."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

CODES = {"int8": "b", "int32": "i", "int64": "q", "double": "d"}  # in which `array` packs them


def column(values: Sequence[Any], kind: "pyarrow.DataType") -> "pyarrow.Array":
    """Texts, numbers of a kind in CODES, bytes of one length, or lists of such numbers; none of them missing.

    `pyarrow.array` would import pandas first, which takes longer than most data do, and look at every number.
    """
    import pyarrow
    from pyarrow import types

    def numbers(kind: "pyarrow.DataType", of: Iterable[float]) -> "pyarrow.Array":
        packed = array(CODES[str(kind)], of)
        return pyarrow.Array.from_buffers(kind, len(packed), [None, pyarrow.py_buffer(packed)])

    def ends(of: Iterable[Sequence[Any]]) -> "pyarrow.Array":
        return numbers(pyarrow.int32(), accumulate(map(len, of), initial=0))

    if types.is_list(kind):
        return pyarrow.ListArray.from_arrays(ends(values), numbers(kind.value_type, chain.from_iterable(values)))
    if types.is_fixed_size_binary(kind):
        return pyarrow.Array.from_buffers(kind, len(values), [None, pyarrow.py_buffer(b"".join(values))])
    if types.is_string(kind):
        texts = [text.encode() for text in values]
        return pyarrow.StringArray.from_buffers(
            len(texts), ends(texts).buffers()[1], pyarrow.py_buffer(b"".join(texts))
        )
    return numbers(kind, values)
