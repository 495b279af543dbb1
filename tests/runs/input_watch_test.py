"""What is told of a run's input: bytes a step, and one sentence where steps wait for it."""

import dataclasses

import numpy as np
import pytest

from diffusion_jax.config import base
from diffusion_jax.data.example import Blocks
from diffusion_jax.data.pipeline import Order, Reading, train_batches
from diffusion_jax.modalities import modality
from diffusion_jax.runs.train.input_watch import InputWatch, advice
from diffusion_jax.train.hooks import Clock, Moment


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Arrays of 16 float32 values: 64 bytes each."""

    count: int = 40
    blocks: Blocks | None = None
    modality = "array"
    num_classes = class_names = None
    fingerprint = "arrays"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"array": np.full((4, 4, 1), index, np.float32), "name": str(index)}


def config(**changes):
    made = base()
    made.data.update(source="mine.Arrays()", shape=(4, 4, 1), modality="array(mean=(0.,), deviation=(1.,))")
    made.train.batch_size = 8
    made.update_from_flattened_dict(changes)
    return made


def watch(prints=True):
    batches = train_batches(
        Arrays(), modality(config().data.modality), (4, 4, 1), Order(0, 8), reading=Reading(threads=0)
    )
    return InputWatch(config(), Arrays(), batches, prints=prints), batches


def after(step, training, waited):
    return Moment(step, None, None, False, Clock(step, training, waited))


def test_bytes_are_counted_a_step():
    watched, batches = watch()
    assert watched.counted() == {}
    for steps in (3, 1):
        for _ in range(steps):
            next(batches)
        assert watched.counted() == {"input_bytes": 8 * 64}
    assert watched.counted() == {}


def test_slow_input_is_told_once_and_with_its_times(capfd):
    watched, _ = watch()
    watched.run(after(10, 100.0, 90.0))  # what starts slowly does not count
    watched.run(after(20, 120.0, 94.0))
    assert not capfd.readouterr().err
    for step in (30, 40):
        watched.run(after(step, 4.0 * step + 40, 94.0 + 3 * (step - 20)))
    (line,) = capfd.readouterr().err.splitlines()
    assert "wait for their data 75% of the time, 3 of 4 s a step: data.cache=True holds" in line


@pytest.mark.parametrize(
    ("prints", "training", "waited"), [(True, 9.0, 9.0), (True, 100.0, 20.0), (False, 100.0, 90.0)]
)
def test_short_and_few_waits_and_other_processes_say_nothing(capfd, prints, training, waited):
    watched, _ = watch(prints)
    watched.run(after(1, 0.0, 0.0))
    watched.run(after(5, training, waited))
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("source", "changes", "said", "unsaid"),
    [
        (Arrays(), {}, ["data.cache=True", "data.workers=16 decodes on all 16 cores"], ["tar", "disk"]),
        (Arrays(), {"data.cache": True, "data.workers": 4}, ["store the images"], ["cache", "workers", ";"]),
        (Arrays(10**9), {}, ["data.workers=16"], ["cache"]),
        (
            Arrays(10**9),
            {"data.source": "webdataset:gs://b/s"},
            ["data.threads=16", "copy the shards"],
            ["cache", "workers"],
        ),
        (Arrays(10**9, Blocks((5, 5), (9, 9), 10)), {}, ["data.threads=32", "tar shards"], ["workers"]),
        (Arrays(10**9, Blocks((5, 5), (5, 5), 10)), {"data.threads": 32}, ["store the images"], ["tar", "threads"]),
    ],
)
def test_advice_fits_the_data_and_the_machine(source, changes, said, unsaid):
    text = advice(config(**changes), source, cores=16)
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)
