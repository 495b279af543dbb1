"""Collectives of real programs on eight devices, whose bytes are known; and each way that HLO writes them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.runs.plan import compiled
from diffusion_jax.runs.plan.compiled import Collective
from diffusion_jax.train import sharding


def program(f, mesh, specs, out, *shapes):
    place = lambda spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    jitted = jax.jit(f, in_shardings=tuple(map(place, specs)), out_shardings=place(out))
    return jitted.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def sgd(w, x):
    """Three steps: the gradient of each is summed over the devices, which hold the batch."""
    loss = lambda w, x: jnp.mean((x @ w) ** 2)  # noqa: E731
    return jax.lax.scan(lambda w, x: (w - jax.grad(loss)(w, x), None), w, x)[0]


def test_data_parallel_training_sums_each_gradient_once():
    made = program(sgd, sharding.mesh(data=8), [(), (None, "data")], (), (16, 32), (3, 64, 16))
    assert compiled.collectives(made.as_text(), 8) == {Collective("all-reduce", 16 * 32 * 4, 8): 3}


def test_a_group_is_an_axis_of_the_mesh():
    mesh = sharding.mesh(data=2, fsdp=4)
    made = program(lambda x: x + 1, mesh, [("fsdp",)], (), (16, 6))
    assert compiled.collectives(made.as_text(), 8) == {Collective("all-gather", 16 * 6 * 4, 4): 1}


def test_what_a_device_sends_in_a_ring():
    assert Collective("all-reduce", 800, 8).sent == 2 * 7 * 100  # each of 8 parts goes round once to sum, once to tell
    assert Collective("all-gather", 800, 8).sent == 7 * 100
    assert Collective("reduce-scatter", 800, 8).sent == 7 * 100
    assert Collective("collective-permute", 800, 8).sent == 800
    assert Collective("all-reduce", 800, 1).sent == 0


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "%a = (f32[8]{0:T(128)S(1)}, /*index=5*/bf16[3,3,8,1]{3,2,1,0:T(8,128)}) all-reduce(%x, %y), "
            "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add",
            Collective("all-reduce", 8 * 4 + 72 * 2, 4),
        ),
        (
            "%a = f32[8]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0':(1)2,'axis_1'}",
            Collective("all-reduce", 32, 4),
        ),
        ("ROOT %a = f32[] all-reduce-start(%x), replica_groups={{0,1},{2,3}}", Collective("all-reduce", 4, 2)),
        ("%a = (f32[2,4], f32[8,4]) all-gather-start(%x), replica_groups=[2,4]<=[8]", Collective("all-gather", 128, 4)),
        (
            "%a = ((s8[2], u4[2]), (s8[16], u4[16])) all-gather-start(%x, %y), replica_groups=[1,8]<=[8]",
            Collective("all-gather", 24, 8),
        ),
        (
            "%a = f32[2] reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}",
            Collective("reduce-scatter", 32, 4),
        ),
        (
            "%a = (pred[6], pred[6], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
            Collective("collective-permute", 6, 8),
        ),
        ("%a = f32[4] all-to-all(%x), replica_groups={}", Collective("all-to-all", 16, 8)),
        ("%a = f32[8] all-reduce-done(%b)", None),
        ("%a = f32[8] fusion(%all-reduce.1), calls=%all-reduce", None),
    ],
)
def test_every_way_a_collective_is_written(line, found):
    text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  {line}\n}}\n"
    assert compiled.collectives(text, 8) == ({found: 1} if found else {})


def test_loops_of_the_tpu_compiler_are_counted_by_their_condition():
    text = """HloModule jit_f

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(50)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%branch (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8] fusion(%p), kind=kCustom, calls=%branch
  ROOT %b = f32[8] conditional(%i, %p, %p), branch_computations={%branch, %other}
}
"""
    assert compiled.collectives(text, 2) == {Collective("all-reduce", 32, 2): 100}


def test_memory_counts_a_donated_array_once():
    f = jax.jit(lambda x, y: (x + y, jnp.sum(y)), donate_argnums=0)
    shape = jax.ShapeDtypeStruct((1000,), jnp.float32)
    memory = compiled.memory(f.lower(shape, shape).compile())
    assert memory.aliased == 4000
    assert memory.arguments == 8000
    assert 8000 <= memory.peak < 12000
