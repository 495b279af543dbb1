"""The search against trying everything, on machines of made-up memory."""

import itertools

import pytest

from diffusion_jax.runs.plan.search import Estimate, Layout, best, meshes, search

BATCH = 64
REMAT = ("none", "dots", "blocks")


def machine(memory):
    """A plausible chip: fsdp shrinks state, micro-batches and remat activations; each of them costs time."""

    def measure(choice):
        state = 40 / choice.fsdp
        activations = 64 / choice.accumulate / {"none": 1, "dots": 2, "blocks": 4}[choice.remat]
        seconds = (
            {"none": 1, "dots": 1.1, "blocks": 4 / 3}[choice.remat] + 0.02 * choice.fsdp + 0.05 * choice.accumulate
        )
        peak = state + activations
        return Estimate(peak <= memory, BATCH / seconds if peak <= memory else 0.0, int(peak))

    return measure


def accumulate(fsdp, tensor):
    return [1, 2, 4, 8]


@pytest.mark.parametrize("memory", [5, 12, 18, 25, 40, 60, 110])
def test_the_best_is_that_of_all_layouts_in_fewer_compilations(memory):
    options = meshes(8)
    found = list(search(options, REMAT, accumulate, machine(memory)))
    every = [Layout(f, t, r, n) for (f, t), r, n in itertools.product(options, REMAT, accumulate(1, 1))]
    expected = best([(choice, machine(memory)(choice)) for choice in every])
    assert best(found) == expected
    assert (expected is None) == (memory == 5)
    assert len({choice for choice, _ in found}) == len(found)
    if memory >= 60:
        assert len(found) < len(every) / 2


def test_meshes_are_all_that_there_are():
    assert meshes(6) == [(1, 1), (2, 1), (3, 1), (6, 1)]
    assert meshes(8, (1, 2)) == [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2)]


def test_rematerialization_is_not_tried_where_it_makes_no_room():
    tried = [choice for choice, _ in search([(1, 1)], REMAT, accumulate, machine(1000))]
    assert tried == [Layout(1, 1, "none", 1)]
    assert "--config.mesh.fsdp=1" in tried[0].flags
    assert "--config.model.remat=none" in tried[0].flags
