"""Bytes, FLOPs and temporaries of programs small enough to count by hand, and where they are put."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from diffusion_jax.nets.conv import conv
from diffusion_jax.nets.layers import GroupNorm
from diffusion_jax.report import plan as report
from diffusion_jax.runs.plan import instructions
from diffusion_jax.runs.plan.breakdown import OUTSIDE, Part, level, parts, scopes


def compiled(f, *shapes):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_a_matrix_product_reads_its_operands_and_writes_its_result():
    made = compiled(lambda x, w: x @ w, (64, 32), (32, 16))
    moved = 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert parts(made.as_text()) == (Part("matrix products", OUTSIDE, 2 * 64 * 32 * 16, moved, 0),)
    assert made.cost_analysis()["bytes accessed"] == moved


def test_a_fusion_writes_nothing_in_between():
    made = compiled(lambda x: jnp.exp(jnp.sin(x) + 1), (50, 40))
    (part,) = parts(made.as_text())
    assert part == Part("elementwise", OUTSIDE, 0, 2 * 4 * 50 * 40, 0)


PRODUCT = 2 * 9 * 4 * 3 * 2 * 8 * 8  # of a convolution with padding, and of each of its gradients on CPU


def test_a_convolution_and_its_gradients_are_kinds_of_their_own():
    made = compiled(jax.grad(lambda x, k: conv(x, k, 1).sum() ** 2, (0, 1)), (2, 8, 8, 3), (3, 3, 3, 4))
    found = {part.kind: part.flops for part in parts(made.as_text()) if part.flops}
    assert set(found) == {"convolutions", "convolutions, input's gradient", "convolutions, kernel's gradient"}
    inside = 2 * 4 * 3 * 2 * 22**2  # pairs of a place and a tap: 3 x 8 along an axis, less the two that are padding
    assert found["convolutions"] == found["convolutions, input's gradient"] == inside
    assert found["convolutions, kernel's gradient"] == PRODUCT  # one matrix product, with the padding


class Net(nn.Module):
    """One module of each name that a kind or a level is known by."""

    @nn.compact
    def __call__(self, x):
        """[B, N, C] -> [B, N, C]."""
        h = GroupNorm(2, name="norm_in")(x)
        return x + nn.Dense(x.shape[-1], name="down_0")(h)


def test_levels_are_the_modules_of_the_network():
    net, shape = Net(), (4, 64, 8)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
    step = jax.jit(jax.grad(lambda p, x: jnp.square(net.apply(p, x)).sum())).lower(params, jnp.zeros(shape)).compile()
    found = parts(step.as_text())
    assert {part.level for part in found if part.flops} == {"down_0"}
    assert any(part.kind == "norms" and part.level == "norm_in" for part in found)
    total = step.cost_analysis()["bytes accessed"]
    assert sum(part.accessed for part in found) == pytest.approx(total, rel=0.05)


def test_a_path_is_read_through_what_transformations_wrap():
    path = "jit(step)/transpose(jvp(UNet))/down_0/vmap(BNTS,BSNH->BTNH)/dot_general"
    assert scopes(path) == ["step", "UNet", "down_0", "BNTS,BSNH->BTNH", "dot_general"]
    assert level(path) == "down_0"
    assert level("jit(step)/optimizer/mul") == OUTSIDE


TEXT = """HloModule jit_f, is_scheduled=true

%slicing (p.0: f32[100,8], p.1: f32[8]) -> f32[8] {
  %p.0 = f32[100,8]{1,0} parameter(0)
  %p.1 = f32[8]{0} parameter(1)
  %slice.0 = f32[1,8]{1,0} slice(%p.0), slice={[3:4], [0:8]}
  %bitcast.0 = f32[8]{0} bitcast(%slice.0)
  ROOT %add.0 = f32[8]{0} add(%bitcast.0, %p.1)
}

%body (state: (f32[8])) -> (f32[8]) {
  %state = (f32[8]{0}) parameter(0)
  %value = f32[8]{0} get-tuple-element(%state), index=0
  %negate.0 = f32[8]{0} negate(%value)
  ROOT %tuple.0 = (f32[8]{0}) tuple(%negate.0)
}

%condition (state.1: (f32[8])) -> pred[] {
  %state.1 = (f32[8]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[100,8], b: f32[8]) -> f32[8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %fusion.0 = f32[8]{0} fusion(%a, %b), kind=kLoop, calls=%slicing
  %kernel = f32[16,8]{1,0:T(8,128)} custom-call(%fusion.0), custom_call_target="tpu_custom_call", attributes={
"json": "several lines"
}, metadata={op_name="jit(f)/Net/mid/attention_core/pallas_call"}
  %copy-start = (f32[16,8]{1,0:T(8,128)S(1)}, f32[16,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%kernel)
  %copy-done = f32[16,8]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %reduced = f32[8]{0} all-reduce(%fusion.0), replica_groups={}, to_apply=%sum
  %tuple.1 = (f32[8]{0}) tuple(%reduced)
  %while.0 = (f32[8]{0}) while(%tuple.1), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%while.0), index=0
}
"""


def test_parts_of_operands_loops_kernels_and_prefetches_by_hand():
    made = instructions.parse(TEXT)
    moved = {each.name: instructions.accessed(made, computation, each) for computation, each in made.run()}
    assert {name: size for name, size in moved.items() if size} == {
        "fusion.0": 3 * 32,  # one row of a, b, and the result
        "kernel": 32 + 16 * 128 * 4,  # the result has the padding of its tiles
        "copy-start": 3 * 16 * 128 * 4 + 4,  # the shape of a start holds its operand, its result and a context
        "copy-done": 16 * 128 * 4,
        "reduced": 2 * 32,
        "negate.0": 2 * 32,  # once, however often the loop runs
    }
    # Most is held when the kernel has run: its result, and the fusion's, which is read again.
    assert parts(TEXT) == (
        Part("attention", "mid", 0, 32 + 8192, 8192, 32 + 8192),
        Part("elementwise", OUTSIDE, 0, 160, 32),
        Part("copies and transposes", OUTSIDE, 0, 4 * 8192 + 4, 0),
        Part("collectives", OUTSIDE, 0, 64, 0),
    )


def test_what_no_instruction_shows_is_a_line_of_its_own_and_all_lines_are_the_compilers_sum():
    made = {
        "compiled_flops_a_chip": 50.0,
        "repeats": 2.0,
        "bytes_accessed_a_chip": 1000.0,
        "kernel_bytes_a_chip": 0.0,
        "memory_a_chip": None,
        "parts_a_chip": [
            {"kind": "norms", "level": "mid", "flops": 0, "accessed": 700.0, "temporaries": 0},
            {"kind": "norms", "level": "up_0", "flops": 80.0, "accessed": 200.0, "temporaries": 0},
        ],
    }
    lines = [" ".join(line.split()) for line in report.split_table("TRAIN STEP", "kind", made)]
    assert lines[3:] == [
        "norms 80 900 B 90.0% 0 B",
        "unattributed 20 100 B 10.0% 0 B",
        "the compiler's sum 100 1000 B 100.0% 0 B",
    ]
