"""Whether all processes of a run are about to do the same, which they compare before the first step."""

import collections
import json
import socket
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError

Record = Mapping[str, object]
"""{field: value that JSON can hold} of one process. "host" is the name of its machine, which is not compared."""


def differences(records: Sequence[Record]) -> list[str]:
    """A sentence for each field of a process that has another value than most processes; records are in their order.

    Where two values are equally frequent, that of process 0 counts as the usual one.
    """
    found = []
    for name in dict.fromkeys(name for record in records for name in record if name != "host"):
        values = [_text(record[name]) if name in record else "nothing" for record in records]
        counts = collections.Counter(values)
        usual = max(counts, key=lambda value: (counts[value], value == values[0]))
        found += [
            f"process {i} ({record.get('host', 'unknown host')}) has {name} {value}, the others {usual}"
            for i, (record, value) in enumerate(zip(records, values, strict=True))
            if value != usual
        ]
    return found


def check_agreement(record: Record) -> None:
    """Raises UserError, in all processes of the run, where their records differ. Every process must call this."""
    if jax.process_count() == 1:
        return
    if wrong := differences(gathered({"host": socket.gethostname(), **record})):
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise UserError(f"the processes of this run do not agree: {shown}; start all with the same command and code")


def gathered(record: Record) -> list[Record]:
    """The records of all processes, in the order of the processes. Every process must call this."""
    data = np.frombuffer(json.dumps(record).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
