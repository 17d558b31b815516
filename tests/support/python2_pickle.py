"""Data frames as pandas wrote them under Python 2, which the GAS data were published as.

Opcodes of protocol 2 with byte strings where Python 3 has text, modules under the names they had,
and the state that the block manager had between pandas 0.14 and 0.22.
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Named:
    """A class or function by the name it had."""

    module: str
    name: str


@dataclass(frozen=True)
class Built:
    """An object as protocol 2 builds it: the class without arguments, then its state."""

    cls: Named
    state: Any


@dataclass(frozen=True)
class Called:
    """An object that a function makes."""

    function: Named
    arguments: tuple[Any, ...]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one written in Python
    """Writes text and bytes as Python 2's strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        short = len(content) < 256
        length = bytes([len(content)]) if short else struct.pack("<i", len(content))
        self.write((pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + length + content)

    def save_named(self, named: Named) -> None:
        self.write(pickle.GLOBAL + f"{named.module}\n{named.name}\n".encode())

    def save_built(self, built: Built) -> None:
        self.save(built.cls)
        self.save(())
        self.write(pickle.NEWOBJ)
        self.save(built.state)
        self.write(pickle.BUILD)

    def save_called(self, called: Called) -> None:
        self.save(called.function)
        self.save(called.arguments)
        self.write(pickle.REDUCE)

    def save_array(self, array: np.ndarray[Any, Any]) -> None:
        _, arguments, state = array.__reduce__()  # type: ignore[misc]
        self.save_called(Called(Named("numpy.core.multiarray", "_reconstruct"), arguments))
        self.save(state)
        self.write(pickle.BUILD)

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[Named] = save_named
    dispatch[Built] = save_built
    dispatch[Called] = save_called
    dispatch[np.ndarray] = save_array


def pickled(frame: pd.DataFrame, base: str, rows: Named) -> bytes:
    """A frame of floats, as it was pickled.

    Args:
        frame: its columns have names.
        base: the module that had ``Index``.
        rows: the class of its index: a ``RangeIndex``, or one of numbers.
    """
    make, index = Named(base, "_new_Index"), Named(base, "Index")
    names = np.array([str(name) for name in frame.columns], dtype=object)
    columns = Called(make, (index, {"data": names, "name": None}))
    count = {"start": 0, "stop": len(frame), "step": 1, "name": None}
    numbers = {"data": np.arange(len(frame)), "name": None}
    along = Called(make, (rows, count if rows.name == "RangeIndex" else numbers))
    values = np.ascontiguousarray(frame.to_numpy(dtype=np.float64).T)
    blocks = [{"values": values, "mgr_locs": slice(0, len(names), 1)}]
    later = {"0.14.1": {"axes": [columns, along], "blocks": blocks}}
    state = ([columns, along], [values], [columns], later)
    manager = Built(Named("pandas.core.internals", "BlockManager"), state)
    content = {"_typ": "dataframe", "_metadata": [], "_data": manager}
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(Built(Named("pandas.core.frame", "DataFrame"), content))
    return file.getvalue()
