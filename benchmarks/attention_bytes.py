"""Bytes and temporaries of attention alone, by each kernel, as a TPU's compiler has them; no TPU is needed.

Queries, keys and values come as projections give them, [B, N, H D], and so do the output and all cotangents; the
gradient is that of all three and has the forward pass in it. A Pallas kernel counts as its operands and results,
whatever cost it states. "tokamax" takes the package of this name: once with the blocks that it chooses, once ("large")
with those of our splash attention. What a kernel refuses is said in its row.

    export JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0 JAX_MEMORY_FITTING_EFFORT=-1.0 JAX_PLATFORMS=cpu
    python benchmarks/attention_bytes.py v6e:1x1 8,4096,4096,8,40 8,4096,77,8,40
    python benchmarks/attention_bytes.py v6e:1x1 8,4096,4096,8,64 --kernels=packed,tokamax
"""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.launching import machines
from diffusion_jax.nets import attention, packed_attention, splash_attention
from diffusion_jax.runs.plan import instructions
from diffusion_jax.train import sharding

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def by_tokamax(large: bool) -> Attention:
    from tokamax._src.ops.attention.pallas_mosaic_tpu import Config, PallasMosaicTpuFlashAttention
    from tokamax._src.ops.attention.pallas_mosaic_tpu_vjp import Config as VjpConfig
    from tokamax._src.ops.attention.pallas_mosaic_tpu_vjp import PallasMosaicTpuFlashAttentionVjp
    from tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_kernel import QKVLayout

    del sys.argv[1:]  # it reads flags of its own from there
    # They ask the host for its TPU, which is another than that which is compiled for.
    for op in (PallasMosaicTpuFlashAttention, PallasMosaicTpuFlashAttentionVjp):
        op.supported_on = lambda self, device: True

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if not large:
            return PallasMosaicTpuFlashAttention()(q, k, v)
        minor = QKVLayout.HEAD_DIM_MINOR
        rows, columns = min(512, q.shape[1]), min(512, k.shape[1])
        held = min(2048, k.shape[1])
        forward = Config(
            block_q=rows,
            block_kv=held,
            block_kv_compute=columns,
            q_layout=minor,
            k_layout=minor,
            v_layout=minor,
            use_experimental_scheduler=True,
        )
        backward = VjpConfig(block_q_dkv=rows, block_kv_dkv=held, block_kv_dkv_compute=columns)
        return PallasMosaicTpuFlashAttention(config=forward, vjp=PallasMosaicTpuFlashAttentionVjp(config=backward))(
            q, k, v
        )

    return attend


def by_packed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    if not packed_attention.takes(q, k, None):
        raise ValueError("an example's keys do not fit in vector memory")
    return attention.attend_by(packed_attention.packed(), q, k, v)


KERNELS: dict[str, Callable[[], Attention]] = {
    "xla": lambda: lambda q, k, v: attention.attend(q, k, v, kernel="xla"),
    "splash": lambda: lambda q, k, v: attention.attend_by(splash_attention.splash(), q, k, v),
    "packed": lambda: by_packed,
    "tokamax": lambda: by_tokamax(large=False),
    "tokamax-large": lambda: by_tokamax(large=True),
}


def gib(program: jax.stages.Compiled) -> str:
    """Bytes accessed, with those of kernels counted anew, and temporaries."""
    found = program.cost_analysis()
    accessed = (found[0] if isinstance(found, list) else found)["bytes accessed"]
    module = instructions.parse(program.as_text())
    for computation, each in module.run():
        if 'custom_call_target="tpu_custom_call"' in each.text:
            stated = re.search(r'"cost_estimate":\{[^}]*"bytes_accessed":"?(\d+)', each.text)
            accessed += instructions.accessed(module, computation, each) - (int(stated[1]) if stated else 0)
    return f"{accessed / 2**30:.2f} GiB, {program.memory_analysis().temp_size_in_bytes / 2**30:.2f} GiB"


def measured(attend: Attention, sizes: tuple[int, ...], mesh: Mesh) -> list[str]:
    """Of the forward pass and of the gradient."""
    batch, queries, keys, heads, features = sizes

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        split = (a.reshape(*a.shape[:2], heads, features) for a in (q, k, v))
        return attend(*split).reshape(q.shape)

    def gradient(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(g)

    def given(tokens: int) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct((batch, tokens, heads * features), jnp.bfloat16, sharding=place)

    q, k = given(queries), given(keys)
    programs: list[tuple[Any, ...]] = [(forward, q, k, k), (gradient, q, k, k, q)]
    rows = []
    for f, *args in programs:
        try:
            rows.append(gib(jax.jit(sharding.on_mesh(mesh, f)).lower(*args).compile()))
        except Exception as error:  # another package's refusal is a result
            rows.append(f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topology")
    parser.add_argument("sizes", nargs="+", metavar="B,N,M,H,D")
    parser.add_argument("--kernels", default=",".join(KERNELS))
    args = parser.parse_args()
    mesh = sharding.mesh(1, 1, 1, devices=machines.topology(args.topology)[:1])
    print("| B, N, M, H, D | kernel | forward: bytes, temporaries | with gradients: bytes, temporaries |")
    print("|---|---|---|---|")
    for sizes in args.sizes:
        for name in args.kernels.split(","):
            cells = measured(KERNELS[name](), tuple(map(int, sizes.split(","))), mesh)
            print("| " + " | ".join((sizes, name, *cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
