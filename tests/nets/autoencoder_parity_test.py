"""The autoencoder against diffusers, the discriminator and LPIPS against torch.nn: values and gradients."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.interop import lpips_weights
from diffusion_jax.interop.diffusers_autoencoder import from_diffusers, to_diffusers
from diffusion_jax.nets import perceptual
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.discriminator import PatchDiscriminator
from diffusion_jax.nets.perceptual import LPIPS

pytestmark = pytest.mark.parity


def torch_twin(net: AutoencoderKL, in_channels: int):
    """An AutoencoderKL of the sizes of net, every parameter random: none zero, so every gradient counts."""
    import diffusers
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    attended = [2**i in net.attention for i in range(len(net.multipliers))]
    twin = diffusers.AutoencoderKL(
        in_channels=in_channels,
        out_channels=net.out_channels,
        latent_channels=net.latent_channels,
        block_out_channels=tuple(net.channels * m for m in net.multipliers),
        layers_per_block=net.blocks,
        down_block_types=tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attended),
        up_block_types=tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attended)),
        norm_num_groups=net.groups,
        use_quant_conv=net.quant_convs,
        use_post_quant_conv=net.quant_convs,
        mid_block_add_attention=net.mid_attention,
    )
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.1 * torch.randn_like(p))
    return twin.eval()


def first(a) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 1))


def relative_errors(ours, expected):
    # Softmax is indifferent to a key's bias, whose gradient is rounding: errors are relative to 1e-3 of the largest.
    assert ours.keys() == expected.keys()
    scale = max(np.abs(v).max() for v in expected.values())
    return {k: np.abs(ours[k] - v).max() / max(np.abs(v).max(), 1e-3 * scale) for k, v in expected.items()}


SMALL = AutoencoderKL(latent_channels=4, channels=8, multipliers=(1, 2), blocks=1, groups=4)


@pytest.mark.parametrize(
    ("net", "size", "in_channels"),
    [
        (SMALL.clone(quant_convs=False, blocks=2, latent_channels=3), (4, 6), 3),
        (SMALL.clone(multipliers=(1, 2, 4), attention=(2,), out_channels=1, mid_attention=False), (8, 12), 2),
        (SMALL.clone(multipliers=(1, 1, 2, 2)), (16, 8), 3),
    ],
    ids=["two_levels_no_quant_convs", "three_levels_attention_at_one", "four_levels_as_stable_diffusion"],
)
def test_the_autoencoder_agrees_with_diffusers(net, size, in_channels):
    import torch

    twin = torch_twin(net, in_channels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, in_channels), np.float32)
    theirs = {name: p.detach().numpy() for name, p in twin.state_dict().items()}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    params = from_diffusers(theirs, shapes)
    assert len(jax.tree.leaves(params)) == len(theirs)

    torch_x = torch.from_numpy(first(x)).requires_grad_()
    posterior = twin.encode(torch_x).latent_dist
    noise = rng.standard_normal((2, *(n // net.factor for n in size), net.latent_channels), np.float32)
    torch_out = twin.decode(posterior.mean + posterior.std * torch.from_numpy(first(noise))).sample
    # A random linear function of all outputs, whose gradient no cancellation hides.
    expected = [torch_out, posterior.mean, posterior.logvar]
    weights = [rng.standard_normal(tuple(v.shape), np.float32) for v in expected]
    sum((torch.from_numpy(w) * v).mean() for w, v in zip(weights, expected, strict=True)).backward()

    def loss(params, x):
        out = net.apply({"params": params}, x, noise)
        return sum((np.moveaxis(w, 1, -1) * v).mean() for w, v in zip(weights, out, strict=True)), out

    (_, out), (by_params, by_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    for name, ours, other in zip(("decoded", "mean", "logvar"), out, expected, strict=True):
        other = other.detach().numpy()
        np.testing.assert_allclose(first(ours), other, atol=1e-4, err_msg=name)
    errors = relative_errors(
        {**to_diffusers(by_params), "x": first(by_x)},
        {**{name: p.grad.numpy() for name, p in twin.named_parameters()}, "x": torch_x.grad.numpy()},
    )
    assert max(errors.values()) < 1e-4, max(errors.items(), key=lambda kv: kv[1])


@pytest.mark.parametrize("groups", [None, 4])
def test_the_discriminator_is_pix2pixs(groups):
    import torch
    from torch import nn

    torch.manual_seed(0)
    widths = [3, 8, 16, 32, 64]
    modules = []
    for i, (before, width) in enumerate(pairwise(widths)):
        modules.append(nn.Conv2d(before, width, 4, 2 if i < 3 else 1, 1))
        if i and groups:
            modules.append(nn.GroupNorm(groups, width))
        modules.append(nn.LeakyReLU(0.2))
    twin = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, 1, 1))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1 * torch.randn_like(p))

    net = PatchDiscriminator(channels=8, groups=groups)
    x = np.random.default_rng(0).standard_normal((2, 40, 24, 3)).astype(np.float32)
    convs = [m for m in twin if isinstance(m, nn.Conv2d)]
    norms = [m for m in twin if isinstance(m, nn.GroupNorm)]
    params = {
        f"conv_{name}": {"kernel": m.weight.detach().permute(2, 3, 1, 0).numpy(), "bias": m.bias.detach().numpy()}
        for name, m in zip((0, 1, 2, 3, "out"), convs, strict=True)
    }
    for i, m in enumerate(norms):
        params[f"norm_{i + 1}"] = {"scale": m.weight.detach().numpy(), "bias": m.bias.detach().numpy()}
    torch_x = torch.from_numpy(first(x)).requires_grad_()
    expected = twin(torch_x)[:, 0]
    expected.square().mean().backward()

    def loss(x):
        logits = net.apply({"params": params}, x)
        return jnp.square(logits).mean(), logits

    (_, logits), by_x = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-4, atol=1e-4)
    assert max(relative_errors({"x": first(by_x)}, {"x": torch_x.grad.numpy()}).values()) < 1e-4


def test_lpips_is_its_formula_on_torch_vgg16():
    """VGG16 and eq. 1 written afresh; the weights go through the names of the lpips package."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    modules, slices, before = [], [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512):
        if width == "M":
            modules.append(nn.MaxPool2d(2))
            slices.append(len(modules) - 1)
        else:
            conv = nn.Conv2d(before, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight)
            nn.init.normal_(conv.bias, std=0.1)
            modules += [conv, nn.ReLU()]
            before = width
    twin = nn.Sequential(*modules)
    levels = [*slices, len(modules)]  # a level's features are those before its pooling
    heads = [torch.rand(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]

    arrays = {f"lin{k}.model.1.weight": head.numpy() for k, head in enumerate(heads)}
    arrays |= {f"lins.{k}.model.1.weight": head.numpy() for k, head in enumerate(heads)}
    for name, value in twin.state_dict().items():
        part = 1 + sum(int(name.split(".")[0]) >= start for start in slices)
        arrays[f"net.slice{part}.{name}"] = value.numpy()
    params = lpips_weights.from_arrays(arrays, perceptual.shapes())

    def features(x):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        # ImageNet's statistics are of pixels in [0, 1]; lpips rounds them, doubled, to three digits.
        assert torch.allclose(2 * mean - 1, torch.tensor([-0.030, -0.088, -0.188]))
        h = (x - (2 * mean - 1)[:, None, None]) / (2 * std)[:, None, None]
        for i, module in enumerate([*modules, None]):
            if i in levels:
                yield h / h.square().sum(1, keepdim=True).sqrt().add(1e-10)
            h = module(h) if module else h

    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32) for _ in range(2))
    torch_x = torch.from_numpy(first(x)).requires_grad_()
    pairs = zip(heads, features(torch_x), features(torch.from_numpy(first(y))), strict=True)
    expected = sum(((a - b).square() * w).sum(1).mean((1, 2)) for w, a, b in pairs)
    expected.sum().backward()

    def loss(x, params):
        distance = LPIPS().apply({"params": params}, x, y)
        return distance.sum(), distance

    (_, distance), by_x = jax.jit(jax.value_and_grad(loss, has_aux=True))(x, params)
    np.testing.assert_allclose(distance, expected.detach(), rtol=1e-5)
    errors = relative_errors({"x": first(by_x)}, {"x": torch_x.grad.numpy()})
    assert max(errors.values()) < 1e-4
