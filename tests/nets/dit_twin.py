"""The diffusers model that computes what a `DiT` does, and how far apart the two are."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.interop.diffusers_dit import to_diffusers
from diffusion_jax.nets.dit import DiT


def random_params(net: DiT, *args):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
    spread = lambda s: 0.5 * s.shape[-2] ** -0.5 if len(s.shape) > 1 else 0.1  # noqa: E731
    return jax.tree.map(lambda s: np.float32(spread(s) * rng.standard_normal(s.shape)), shapes)


def compare(net: DiT, side: int, channels: int, batch: int = 3):
    """Largest differences of the output and, relative to each array's largest value, of the gradients."""
    import torch
    from diffusers import DiTTransformer2DModel

    torch.set_num_threads(2)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, side, side, channels), np.float32)
    weight = rng.standard_normal((batch, side, side, net.out_channels), np.float32)
    t = np.linspace(0.0, 999.0, batch, dtype=np.float32)
    label = np.arange(batch) % (net.num_classes + 1)
    cond = {"label": jnp.asarray(label, jnp.int32)}
    params = random_params(net, x, t, cond)
    twin = DiTTransformer2DModel(
        num_attention_heads=net.heads,
        attention_head_dim=net.width // net.heads,
        in_channels=channels,
        out_channels=net.out_channels,
        num_layers=net.depth,
        sample_size=side,
        patch_size=net.patch,
        num_embeds_ada_norm=net.num_classes,
        norm_eps=1e-6,
    ).eval()

    def theirs(tree):
        return to_diffusers(tree, patch=net.patch, sinusoids=net.sinusoids)

    twin.load_state_dict({name: torch.from_numpy(value) for name, value in theirs(params).items()}, strict=True)

    def loss(params, x):
        out = net.apply({"params": params}, x, t, cond)
        return (out * weight).mean(), out

    (_, out), (by_params, by_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    torch_x = torch.from_numpy(first(x).copy()).requires_grad_()
    torch_out = twin(torch_x, timestep=torch.from_numpy(t), class_labels=torch.from_numpy(label)).sample
    (torch_out * torch.from_numpy(first(weight).copy())).mean().backward()
    expected = {name: p.grad.numpy() for name, p in twin.named_parameters() if p.grad is not None}
    embedders = {name.split(".", 2)[2] for name in expected if ".norm1.emb." in name}
    for name in embedders:  # ours is one for all layers, so its gradient is the sum of theirs
        copies = [f"transformer_blocks.{i}.{name}" for i in range(net.depth)]
        total = sum(expected[copy] for copy in copies)
        expected |= dict.fromkeys(copies, total)
    ours = {**theirs(by_params), "x": first(by_x)}
    expected["x"] = torch_x.grad.numpy()
    assert {name: v.shape for name, v in ours.items()} == {name: v.shape for name, v in expected.items()}
    # Softmax is indifferent to a key's bias, whose gradient is rounding: errors are relative to 1e-3 of the largest.
    scale = max(np.abs(v).max() for v in expected.values())
    errors = {k: np.abs(ours[k] - v).max() / max(np.abs(v).max(), 1e-3 * scale) for k, v in expected.items()}
    return np.abs(first(out) - torch_out.detach().numpy()).max(), errors


def first(a) -> np.ndarray:
    return np.moveaxis(np.asarray(a), -1, 1)
