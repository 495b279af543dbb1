"""The diffusers model that computes what a `UNet` does, and how far apart the two are."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.interop.diffusers_unet import from_diffusers, to_diffusers
from diffusion_jax.nets.unet import UNet


def torch_twin(net: UNet, in_channels: int, linear_projection: bool = False):
    """Every parameter is random and none zero, so every gradient counts."""
    import torch
    from diffusers import UNet2DConditionModel, UNet2DModel

    torch.set_num_threads(2)
    torch.manual_seed(0)
    attended = [2**i in net.attention for i in range(len(net.multipliers))]
    channels = tuple(net.channels * m for m in net.multipliers)
    both = dict(
        in_channels=in_channels,
        out_channels=net.out_channels,
        block_out_channels=channels,
        layers_per_block=net.blocks,
        downsample_padding={"end": 0, "both": 1}[net.padding],
        flip_sin_to_cos=net.sinusoids == "adm",
        freq_shift=0 if net.sinusoids == "adm" else 1,
        norm_eps=net.epsilon,
        norm_num_groups=net.groups,
        act_fn="silu",
        resnet_time_scale_shift="scale_shift" if net.scale_shift else "default",
        num_class_embeds=None if net.num_classes is None else net.num_classes + 1,
    )
    if net.text_features is None:
        kind = "Resnet{}sampleBlock2D" if net.resample == "block" else "{}Block2D"
        twin = UNet2DModel(
            **both,
            down_block_types=tuple("AttnDownBlock2D" if a else kind.format("Down") for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else kind.format("Up") for a in reversed(attended)),
            downsample_type="resnet" if net.resample == "block" else "conv",
            upsample_type="resnet" if net.resample == "block" else "conv",
            attention_head_dim=net.head_channels or None,
            attn_norm_num_groups=net.groups,  # without it, scale_shift drops the norm of the middle attention
        )
    else:
        heads = [c // net.head_channels for c in channels] if net.head_channels else [net.heads] * len(channels)
        twin = UNet2DConditionModel(
            **both,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
            cross_attention_dim=net.text_features,
            attention_head_dim=heads,  # its name notwithstanding
            transformer_layers_per_block=net.depth,
            use_linear_projection=linear_projection,
            class_embed_type="timestep" if net.levels else None,
        )
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.1 * torch.randn_like(p))
    return twin.eval()


def first(a) -> np.ndarray:
    return np.moveaxis(np.asarray(a), -1, 1)


def compare(
    net: UNet,
    size: tuple[int, ...],
    in_channels: int = 3,
    batch: int = 2,
    linear_projection: bool = False,
    masked: bool = False,
):
    """Largest differences of the output and, relative to each array's largest value, of the gradients.

    The last channel of the input comes through `concat` where the net has it.
    """
    import torch

    twin = torch_twin(net, in_channels, linear_projection)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *size, in_channels), np.float32)
    weight = rng.standard_normal((batch, *size, net.out_channels), np.float32)
    t = np.linspace(0.0, 999.0, batch, dtype=np.float32)
    cond, inputs = {}, {}  # ours and theirs
    if net.num_classes is not None:
        label = np.arange(batch) % (net.num_classes + 1)
        cond["label"], inputs["class_labels"] = jnp.asarray(label, jnp.int32), torch.from_numpy(label)
    for name in net.levels:
        cond[name] = np.linspace(100.0, 20.0, batch, dtype=np.float32)
        inputs["class_labels"] = torch.from_numpy(cond[name])
    if net.text_features is not None:
        cond["text"] = rng.standard_normal((batch, 5, net.text_features), np.float32)
        inputs["encoder_hidden_states"] = torch.from_numpy(cond["text"].copy()).requires_grad_()
    if masked:
        cond["text_mask"] = np.arange(5) < 2 + np.arange(batch)[:, None]
        inputs["encoder_attention_mask"] = torch.from_numpy(cond["text_mask"])
    seen = in_channels - len(net.concat)

    def loss(params, x, text):
        given = cond | ({} if text is None else {"text": text})
        given |= {name: x[..., seen + i : seen + i + 1] for i, name in enumerate(net.concat)}
        out = net.apply({"params": params}, x[..., :seen], t, given)
        return (out * weight).mean(), out

    theirs = {name: p.detach().numpy() for name, p in twin.state_dict().items()}
    example = cond | {name: x[..., :1] for name in net.concat}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x[..., :seen], t, example)["params"]
    params = from_diffusers(theirs, shapes)

    torch_x = torch.from_numpy(first(x).copy()).requires_grad_()
    torch_out = twin(torch_x, torch.from_numpy(t), **inputs).sample
    (torch_out * torch.from_numpy(first(weight).copy())).mean().backward()
    text = cond.get("text")
    (_, out), (by_params, by_x, by_text) = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, x, text)
    ours = {**to_diffusers(by_params, linear_projection=linear_projection), "x": first(by_x)}
    expected = {**{name: p.grad.numpy() for name, p in twin.named_parameters()}, "x": torch_x.grad.numpy()}
    if text is not None:
        ours["text"], expected["text"] = np.asarray(by_text), inputs["encoder_hidden_states"].grad.numpy()
    assert {name: v.shape for name, v in ours.items()} == {name: v.shape for name, v in expected.items()}
    # Softmax is indifferent to a key's bias, whose gradient is rounding: errors are relative to 1e-3 of the largest.
    scale = max(np.abs(v).max() for v in expected.values())
    errors = {k: np.abs(ours[k] - v).max() / max(np.abs(v).max(), 1e-3 * scale) for k, v in expected.items()}
    return np.abs(first(out) - torch_out.detach().numpy()).max(), errors
