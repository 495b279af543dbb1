"""The U-Net against diffusers' UNet2DModel with the same weights: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.interop.diffusers_unet import from_diffusers, to_diffusers
from diffusion_jax.nets.unet import UNet

pytestmark = pytest.mark.parity


def torch_twin(net: UNet, in_channels: int, seed: int = 0):
    """A UNet2DModel of the sizes of net, every parameter random: none zero, so every gradient counts."""
    import torch
    from diffusers import UNet2DModel

    torch.set_num_threads(2)
    torch.manual_seed(seed)
    attended = [2**i in net.attention for i in range(len(net.multipliers))]
    twin = UNet2DModel(
        in_channels=in_channels,
        out_channels=net.out_channels,
        block_out_channels=tuple(net.channels * m for m in net.multipliers),
        layers_per_block=net.blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=net.groups,
        attention_head_dim=None,
        act_fn="silu",
        num_class_embeds=None if net.num_classes is None else net.num_classes + 1,
    )
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.1 * torch.randn_like(p))
    return twin.eval()


def first(a) -> np.ndarray:
    return np.moveaxis(np.asarray(a), -1, 1)


def compare(net: UNet, size: tuple[int, ...], in_channels: int = 3, batch: int = 2):
    """Largest differences of the output and, relative to each array's largest value, of the gradients."""
    import torch

    twin = torch_twin(net, in_channels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *size, in_channels), np.float32)
    weight = rng.standard_normal((batch, *size, net.out_channels), np.float32)
    t = np.linspace(0.0, 999.0, batch, dtype=np.float32)
    label = None if net.num_classes is None else np.arange(batch) % (net.num_classes + 1)
    cond = None if label is None else {"label": jnp.asarray(label, jnp.int32)}

    theirs = {name: p.detach().numpy() for name, p in twin.state_dict().items()}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, cond)["params"]
    params = from_diffusers(theirs, shapes)

    def loss(params, x):
        out = net.apply({"params": params}, x, t, cond)
        return (out * weight).mean(), out

    torch_x = torch.from_numpy(first(x).copy()).requires_grad_()
    torch_out = twin(
        torch_x, torch.from_numpy(t), class_labels=None if label is None else torch.from_numpy(label)
    ).sample
    (torch_out * torch.from_numpy(first(weight).copy())).mean().backward()
    (_, out), (by_params, by_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    ours = {**to_diffusers(by_params), "x": first(by_x)}
    expected = {**{name: p.grad.numpy() for name, p in twin.named_parameters()}, "x": torch_x.grad.numpy()}
    assert ours.keys() == expected.keys()
    # Softmax is indifferent to a key's bias, whose gradient is rounding: errors are relative to 1e-3 of the largest.
    scale = max(np.abs(v).max() for v in expected.values())
    errors = {k: np.abs(ours[k] - v).max() / max(np.abs(v).max(), 1e-3 * scale) for k, v in expected.items()}
    return np.abs(first(out) - torch_out.detach().numpy()).max(), errors


SMALL = UNet(3, channels=32, multipliers=(1, 2), blocks=1, attention=(2,), groups=8)


@pytest.mark.parametrize(
    ("net", "size", "in_channels"),
    [
        (SMALL, (8, 8), 3),
        (SMALL, (8, 12), 3),
        (SMALL.clone(num_classes=3, attention=(1,)), (8, 8), 3),
        (SMALL.clone(out_channels=1, multipliers=(1, 1, 2), blocks=2, attention=()), (12, 8), 2),
    ],
    ids=["square", "non_square", "class_conditional", "three_levels"],
)
def test_small_nets_agree_in_output_and_gradients(net, size, in_channels):
    output, gradients = compare(net, size, in_channels)
    assert output < 1e-4
    assert max(gradients.values()) < 1e-4, max(gradients.items(), key=lambda kv: kv[1])


def test_the_cifar10_net_agrees_in_output_and_gradients():
    output, gradients = compare(UNet(3, dropout=0.1), (32, 32), batch=1)
    assert output < 1e-4
    assert max(gradients.values()) < 1e-4, max(gradients.items(), key=lambda kv: kv[1])
