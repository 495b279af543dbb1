"""Which peak bounds a program, and machines that are asked for and not to be had."""

import importlib.util
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.launching import machines
from diffusion_jax.launching.machines import CHIPS, roofline


@pytest.mark.parametrize(
    ("work", "bound"),
    [
        ({"flops": 197e12, "accessed": 0.5 * 819e9, "sent": 0.9 * 200e9}, "compute"),
        ({"flops": 0.5 * 197e12, "accessed": 819e9, "sent": 0.9 * 200e9}, "hbm"),
        ({"flops": 0.5 * 197e12, "accessed": 0.9 * 819e9, "sent": 200e9}, "interconnect"),
    ],
)
def test_the_longest_of_three_times_bounds(work, bound):
    found = roofline(CHIPS["v5e"], **work)
    assert found.bound == bound
    assert found.seconds == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("NVIDIA H100 80GB HBM3", "h100"), ("cpu", None)],
)
def test_a_chip_is_known_by_its_kind(kind, name):
    assert machines.chip_of(SimpleNamespace(device_kind=kind)) is CHIPS.get(name)


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v7:2x2", "v5p:3x2x1", "v5e:4x4x4", "v4:2x2x1", ""])
def test_an_unknown_topology_is_told_the_known_ones(name):
    with pytest.raises(UserError, match=r"unknown topology .*v5e:1x1, 2x2, .*; v6e:.*; v5p:2x2x1"):
        machines.topology(name)


def test_a_topology_without_its_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'diffusion-jax\[tpu\]'"):
        machines.topology("v5e:4x4")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the tpu extra")
@pytest.mark.parametrize(("name", "count"), [("v5e:1x1", 1), ("v5e:4x4", 16), ("v6e:16x16", 256), ("v5p:2x2x4", 16)])
def test_a_topology_has_its_chips(name, count):
    devices = machines.topology(name)
    assert len(devices) == count
    assert machines.chip_of(devices[0]) is CHIPS[name.partition(":")[0]]


OVERLAP = """
import sys
from diffusion_jax.launching import machines
devices = machines.topology("v5e:2x2")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(devices), ("fsdp",))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["fsdp"], []))
shape = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=split)
def layers(x, kernels):
    kernels = [jax.lax.with_sharding_constraint(kernel, whole) for kernel in kernels]
    for kernel in kernels:
        x = jnp.sin(x @ kernel)
    return x
print(jax.jit(layers, out_shardings=split).lower(shape, [shape] * 3).compile().as_text())
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the tpu extra")
def test_a_tpu_slice_gathers_a_kernel_while_it_multiplies_by_the_one_before():
    """In a v5e's compiled schedule a gather begins before a product and ends behind it."""
    run = subprocess.run([sys.executable, "-c", OVERLAP], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout[run.stdout.index("\nENTRY") :].splitlines()
    named = {found[1]: i for i, line in enumerate(lines) if (found := re.match(r" *%([\w.-]+) = ", line))}
    gathers = [name for name in named if name.startswith("async-collective-start")]
    between = [lines[named[name] : named[name.replace("start", "done")]] for name in gathers]
    assert any(" fusion(" in line and "/dot_general" in line for part in between for line in part)


def test_more_virtual_devices_than_jax_started_with():
    assert len(machines.virtual(2)) == 2
    with pytest.raises(UserError, match="--devices=1000"):
        machines.virtual(1000)
