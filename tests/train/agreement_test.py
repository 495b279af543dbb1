"""What processes must have alike, and how the odd one is named."""

import json

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError
from diffusion_jax.train import agreement


def records(count, **changes):
    """count equal records, but for {process: {field: value}}."""
    found = [{"host": f"tpu-{i}", "seed": 0, "data": "digits", "batch": 128} for i in range(count)]
    for process, change in changes.items():
        found[int(process[1:])] |= change
    return found


def test_equal_records_have_no_differences():
    assert agreement.differences(records(4)) == []
    assert agreement.differences(records(1)) == []


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_the_odd_one_of_four_is_named_with_its_host_and_field(odd):
    """Also process 0: the majority is right."""
    found = agreement.differences(records(4, **{f"_{odd}": {"data": "shapes"}}))
    assert found == [f"process {odd} (tpu-{odd}) has data shapes, the others digits"]


def test_of_two_it_is_the_one_that_is_not_the_first():
    assert agreement.differences(records(2, _1={"batch": 64})) == ["process 1 (tpu-1) has batch 64, the others 128"]


def test_every_field_and_one_that_only_some_have():
    found = agreement.differences(records(3, _1={"batch": 64, "seed": 1}, _2={"new": True}))
    assert found == [
        "process 1 (tpu-1) has seed 1, the others 0",
        "process 1 (tpu-1) has batch 64, the others 128",
        "process 2 (tpu-2) has new true, the others nothing",
    ]


def allgather_of(records):
    """What `process_allgather` gives each of processes that have these records."""
    data = [np.frombuffer(json.dumps(record).encode(), np.uint8) for record in records]

    def allgather(mine):
        if mine.ndim == 0:
            return np.array([len(each) for each in data], np.int32)
        assert len(mine) == max(len(each) for each in data), "all must bring the same shape"
        return np.stack([np.pad(each, (0, len(mine) - len(each))) for each in data])

    return allgather


def test_records_of_other_lengths_are_gathered_whole(monkeypatch):
    """The names of hosts differ in length, so that one is padded."""
    told = records(3, _1={"data": "é" * 40})
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather_of(told))
    assert agreement.gathered(told[0]) == told


def test_every_process_raises_alike(monkeypatch):
    monkeypatch.setattr(agreement.socket, "gethostname", lambda: "tpu")
    told = [{"host": "tpu", **{f"key{i}": 0 for i in range(6)}}, {"host": "tpu", **{f"key{i}": 1 for i in range(6)}}]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather_of(told))
    for record in told:
        with pytest.raises(
            UserError, match=r"do not agree: process 1 \(tpu\) has key0 1, the others 0; .*; and 2 more"
        ):
            agreement.check_agreement({name: value for name, value in record.items() if name != "host"})


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda _: pytest.fail("asked"))
    agreement.check_agreement({"seed": 0})
