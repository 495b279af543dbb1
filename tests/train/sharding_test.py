"""Meshes, and the rules from paths to layouts."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from diffusion_jax.errors import UserError
from diffusion_jax.nets.layers import TENSOR_RULES
from diffusion_jax.train import sharding


def test_minus_one_takes_the_rest():
    assert dict(sharding.mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert dict(sharding.mesh(1, -1, 1).shape) == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}


@pytest.mark.parametrize("sizes", [(-1, 3, 1), (-1, -1, 1), (3, 1, 1), (0, 1, 1), (16, 1, 1), (-2, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(UserError, match="8 devices"):
        sharding.mesh(*sizes)


def test_a_batch_the_mesh_cannot_divide_is_refused():
    mesh = sharding.mesh(4, 2, 1)
    sharding.check_batch(mesh, 32, accumulate=4)
    with pytest.raises(UserError, match=r"train.batch_size=12 is not divisible by 8 .mesh data 4 x fsdp 2 x"):
        sharding.check_batch(mesh, 12)
    with pytest.raises(UserError, match="not divisible by 32"):
        sharding.check_batch(mesh, 8, accumulate=4)


CASES = [
    ("params/down_0/block_0/conv1/kernel", (3, 3, 64, 128), P(None, None, "fsdp", "tensor")),
    ("params/down_0/block_0/conv2/kernel", (3, 3, 128, 256), P(None, None, "tensor", "fsdp")),
    ("opt_state/1/0/mu/mid/block_0/conv1/kernel", (3, 3, 64, 128), P(None, None, "fsdp", "tensor")),
    ("ema/mid/attention/query/kernel", (256, 256), P("fsdp", "tensor")),
    ("ema/mid/attention/out/kernel", (256, 256), P("tensor", "fsdp")),
    ("params/conv_in/kernel", (3, 3, 3, 1024), P(None, None, None, "fsdp")),
    ("params/norm_out/scale", (128,), P(None)),
    ("params/odd/conv1/kernel", (3, 3, 1001, 1003), P(None, None, None, None)),
    ("step", (), P()),
]


@pytest.mark.parametrize(("name", "shape", "expected"), CASES)
def test_rules(name, shape, expected):
    assert sharding.partition(name, shape, sharding.mesh(2, 2, 2), TENSOR_RULES) == expected


def test_zero_splits_all_but_the_parameters_over_data():
    """And leaves to fsdp the axis it has."""
    mesh = sharding.mesh(4, 2, 1)
    kernel, name = (3, 3, 64, 128), "mid/block_0/conv3/kernel"
    tree = {field: {"mid": {"kernel": np.ones(kernel, np.float32)}} for field in ("params", "ema", "opt_state")}
    specs = jax.tree.map(lambda s: s.spec, sharding.tree_sharding(tree, mesh, zero=True))
    assert specs["params"]["mid"]["kernel"] == P(None, None, None, "fsdp")
    assert specs["ema"]["mid"]["kernel"] == specs["opt_state"]["mid"]["kernel"] == P(None, None, "data", "fsdp")
    assert sharding.partition(f"ema/{name}", (3, 3, 63, 127), mesh, zero=True) == P(None, None, None, None)
    assert sharding.partition("opt_state/count", (), mesh, zero=True) == P()


def test_what_is_alike_everywhere_comes_back_whole():
    mesh = sharding.mesh(8)
    a = {"x": np.arange(32.0).reshape(16, 2)}
    placed = sharding.to_mesh(a, sharding.batch_sharding(mesh))
    assert not placed["x"].sharding.is_fully_replicated
    np.testing.assert_array_equal(sharding.to_host(placed["x"]), a["x"])
    assert sharding.to_host(a["x"]) is a["x"]


def test_one_device_splits_nothing():
    mesh = sharding.mesh(devices=jax.devices()[:1])
    for name, shape, _ in CASES:
        assert set(sharding.partition(name, shape, mesh, TENSOR_RULES)) <= {None}


def test_gather_states_whole_arrays_but_for_tensor():
    mesh = sharding.mesh(2, 2, 2)
    kernel = np.ones((3, 3, 64, 128), np.float32)
    tree = {"block_0": {"conv1": {"kernel": kernel}}, "conv_in": {"kernel": kernel}}
    placed = jax.device_put(tree, sharding.tree_sharding(tree, mesh, TENSOR_RULES))
    gathered = jax.jit(lambda t: sharding.gather(t, mesh, TENSOR_RULES))(placed)
    assert gathered["block_0"]["conv1"]["kernel"].sharding.spec == P(None, None, None, "tensor")
    assert gathered["conv_in"]["kernel"].sharding.is_fully_replicated


def test_what_is_read_in_16_bits_is_sent_in_16_bits():
    """As the program asks for it: compiled for a CPU, bfloat16 is sent as float32."""
    mesh = sharding.mesh(1, 2, 1, devices=jax.devices()[:2])
    tree = {"kernel": np.ones((64, 128), np.float32)}
    cast = lambda tree: jax.tree.map(lambda a: a.astype(jax.numpy.bfloat16), tree)  # noqa: E731
    cast_first, split, whole = jax.make_jaxpr(lambda t: sharding.gather(t, mesh, (), cast))(tree).eqns
    assert cast_first.primitive.name == "convert_element_type"
    assert split.params["sharding"].spec == P(None, "fsdp")
    assert whole.params["sharding"].is_fully_replicated
    assert whole.invars[0].aval.dtype == jax.numpy.bfloat16


def sliced(sizes, kind="cpu"):
    """Devices of as many slices as there are sizes, in an order that mixes them, as jax may list them."""
    made = [
        types.SimpleNamespace(id=10 * i + n, slice_index=i, process_index=i, platform=kind, device_kind=kind)
        for i, size in enumerate(sizes)
        for n in range(size)
    ]
    return made[::2] + made[1::2]


def test_data_alone_crosses_from_one_slice_to_the_next():
    """With data 4 over two slices, each half of it is of one slice, and so is all that shares an example."""
    placed = sharding.device_order(sliced([8, 8]), (4, 2, 2, 1), slices=2)
    of = np.vectorize(lambda device: device.slice_index)(placed)
    assert placed.shape == (4, 2, 2, 1)
    assert len({device.id for device in placed.flat}) == 16
    assert (of[:2] == of[0, 0, 0, 0]).all()
    assert (of[2:] == of[2, 0, 0, 0]).all()
    assert of[0, 0, 0, 0] != of[2, 0, 0, 0]


@pytest.mark.parametrize(
    ("devices", "shape", "slices", "said"),
    [
        (sliced([4, 4]), (8, 1, 1, 1), 4, "mesh.slices=4 .* the 8 devices are of 2 slices of 4, 4"),
        (sliced([4, 4]), (8, 1, 1, 1), 1, "mesh.slices=1 .* the 8 devices are of 2 slices of 4, 4"),
        (sliced([2, 4]), (6, 1, 1, 1), 2, "of equal size; the 6 devices are of 2 slices of 2, 4"),
        (sliced([4, 4]), (1, 8, 1, 1), 2, "mesh.data=1 is not divisible by mesh.slices=2"),
        ([object()] * 4, (4, 1, 1, 1), 2, "mesh.slices=2 .* the 4 devices do not say of which slice they are"),
    ],
)
def test_slices_that_the_devices_do_not_have_are_refused(devices, shape, slices, said):
    with pytest.raises(UserError, match=said):
        sharding.device_order(devices, shape, slices)


def test_devices_of_several_slices_ask_for_their_number():
    with pytest.raises(UserError, match="mesh.slices=1 is the number of slices"):
        sharding.mesh(devices=sliced([4, 4]))


def test_the_order_of_devices_changes_no_result():
    """A gradient summed over a mesh whose devices are those of two slices, against the plain order."""
    devices = jax.devices()[:4]
    crossed = np.array([devices[i] for i in (2, 0, 3, 1)]).reshape(4, 1, 1, 1)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    sums = []
    for mesh in (sharding.mesh(4, devices=devices), jax.sharding.Mesh(crossed, sharding.AXES)):
        place = sharding.to_mesh(x, sharding.batch_sharding(mesh))
        sums.append(np.asarray(jax.jit(jax.grad(lambda w, x: jax.numpy.square(x @ w).sum()))(np.ones(16, "f"), place)))
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)


def test_devices_that_share_examples_are_of_one_process():
    """Each process feeds its own devices."""
    devices = np.array(sliced([2, 2])).reshape(2, 1, 1, 2)
    with pytest.raises(UserError, match="mesh.tensor x mesh.context = 2 devices are of several processes"):
        sharding.check_processes(devices)
    sharding.check_processes(np.array(sorted(devices.flat, key=lambda device: device.id)).reshape(2, 1, 1, 2))
