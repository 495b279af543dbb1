"""Configs of diffusers' schedulers and models from ours, and back by the reader of imports. No torch is needed."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_options
from diffusion_jax.interop.diffusers_config import autoencoder_config, dit_config, unet_config
from diffusion_jax.interop.diffusers_scheduler import scheduler
from diffusion_jax.interop.diffusers_scheduler_config import (
    DIT,
    PIXELS,
    STABLE_DIFFUSION,
    SamplingSpecs,
    scheduler_config,
)
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.nets.dit import DiT
from diffusion_jax.nets.network import options
from diffusion_jax.nets.unet import UNet
from diffusion_jax.runs.interchange.diffusers_folder import _fields

K = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
READ = [  # a scheduler's config, of a pipeline of latents or of pixels
    ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False} | K, True),
    ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True} | K, True),
    ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False}, False),
    ({"_class_name": "DDIMScheduler"}, False),
    ({"_class_name": "DDIMScheduler", "thresholding": True, "clip_sample": False}, False),
    ({"_class_name": "DDPMScheduler"}, False),
    ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"}, False),
    ({"_class_name": "DDPMScheduler", "variance_type": "learned_range", "num_train_timesteps": 100}, False),
    ({"_class_name": "DDPMScheduler", "prediction_type": "sample", "clip_sample_range": 2.0}, False),
    ({"_class_name": "PNDMScheduler", "skip_prk_steps": True} | K, True),
    ({"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": True}, False),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"} | K, True),
    (
        {"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min", "timestep_spacing": "leading"} | K,
        True,
    ),
    ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True} | K, True),
    (
        {"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
        | K,
        True,
    ),
    ({"_class_name": "EulerAncestralDiscreteScheduler"} | K, True),
    ({"_class_name": "HeunDiscreteScheduler", "timestep_spacing": "trailing"} | K, True),
    ({"_class_name": "DPMSolverMultistepScheduler"} | K, True),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1} | K, True),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1, "algorithm_type": "sde-dpmsolver++"} | K, True),
    ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "solver_type": "heun"} | K, True),
    ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"} | K, True),
    ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "timestep_spacing": "leading"}, False),
    ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "timestep_spacing": "trailing"} | K, True),
    ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False, "solver_type": "bh1"} | K, True),
]


def written(twin, latent, steps=10):
    prediction = f"{twin.prediction}(learned_variance=True)" if twin.learned_variance else twin.prediction
    specs = SamplingSpecs(twin.schedule, prediction, twin.sampler, twin.grid, twin.threshold)
    caller = STABLE_DIFFUSION if latent else PIXELS
    return scheduler_config(specs, experiment.schedule(twin.schedule), caller, steps=steps)


@pytest.mark.parametrize(
    ("config", "latent"), READ, ids=lambda v: str(v.get("_class_name")) if isinstance(v, dict) else ""
)
def test_what_is_read_is_written_again(config, latent):
    """The config that is written says to the reader what the first did, and names the same scheduler."""
    twin = scheduler(config, "there", latent=latent)
    again = written(twin, latent).config
    assert again["_class_name"] == config["_class_name"]
    assert scheduler(json.loads(json.dumps(again)), "there", latent=latent) == twin
    two_ways = ("clip_sample", "thresholding")  # of saying that x0 lies in [-1, 1]
    kept = {key: value for key, value in config.items() if key in again and not latent and key not in two_ways}
    assert {key: again[key] for key in kept} == kept


@pytest.mark.parametrize(
    "schedule", ["cosine | shift(scale=0.5)", "cosine(steps=50, s=0.1)", "linear | time_shift(scale=2.0)"]
)
def test_a_chain_without_a_name_is_written_beta_by_beta(schedule):
    """alpha^2 of the chain is the product of 1 - beta."""
    built = experiment.schedule(schedule)
    config = scheduler_config(SamplingSpecs(schedule, "v", "ddim", "trailing", "none"), built, PIXELS, steps=10).config
    assert config["num_train_timesteps"] == built.steps == len(config["trained_betas"])
    alpha2 = np.cumprod(1 - np.array(config["trained_betas"]))
    t = jnp.arange(1, built.steps + 1) / built.steps
    np.testing.assert_allclose(np.sqrt(alpha2), built.alpha(t), atol=2e-6)


def test_what_a_call_is_given():
    """DDIM's eta is no option of its scheduler, nor is what moves eps along with a clipped x0."""
    specs = SamplingSpecs("linear", "eps", "ddim(eta=0.5)", "trailing", "static")
    found = scheduler_config(specs, experiment.schedule("linear"), PIXELS, steps=10)
    assert found.call == {"eta": 0.5, "use_clipped_model_output": True}
    assert found.notes == ()
    uneven = scheduler_config(specs, experiment.schedule("linear"), PIXELS, steps=7)
    assert "steps by T // N" in uneven.notes[0]


PLAIN = SamplingSpecs("linear", "eps", "ddim", "trailing", "none")


@pytest.mark.parametrize(
    ("change", "caller", "said"),
    [
        ({"schedule": "vp"}, PIXELS, "schedule 'vp', which is no chain"),
        ({"schedule": "rectified_flow", "prediction": "flow"}, PIXELS, "prediction 'flow' has no twin"),
        ({"schedule": "linear | zero_snr | shift(scale=0.5)", "prediction": "v"}, PIXELS, "which ends without signal"),
        ({"schedule": "linear | zero_snr", "prediction": "v", "sampler": "heun"}, PIXELS, "with HeunDiscreteScheduler"),
        ({"prediction": "edm"}, PIXELS, "prediction 'edm' has no twin"),
        ({"prediction": "eps(sigma_data=0.5)"}, PIXELS, "sigma_data=0.5"),
        ({"prediction": "eps(learned_variance=True)"}, PIXELS, "ddpm(variance='learned')"),
        (
            {"prediction": "eps(learned_variance=True)", "sampler": "ddpm(variance='learned')"},
            DIT,
            "which its pipeline drops",
        ),
        ({"sampler": "ode"}, PIXELS, "sampler ode has no twin in diffusers; give another, as in --sampler=ddim"),
        ({"sampler": "dpmpp_2s"}, PIXELS, "sampler dpmpp_2s has no twin"),
        ({"sampler": "euler(s_churn=3.0)"}, PIXELS, "s_churn=3.0"),
        ({"sampler": "dpmpp_3m", "grid": "linspace(skip_first=True)"}, PIXELS, "dpmpp_3m(reference=True)"),
        ({"sampler": "dpmpp_2m", "grid": "leading"}, PIXELS, "leading(skip_first=True)"),
        ({"sampler": "euler", "grid": "linspace"}, PIXELS, "linspace(whole=False)"),
        ({"grid": "quadratic"}, PIXELS, "time grid quadratic"),
        ({"grid": "karras"}, PIXELS, "time grid karras with DDIMScheduler"),
        ({"grid": "leading"}, STABLE_DIFFUSION, "leading(offset=1)"),
        ({"sampler": "ddpm", "grid": "trailing(last='t_min')"}, PIXELS, "which ends at the data"),
        ({"sampler": "euler", "threshold": "static"}, PIXELS, "threshold static with EulerDiscreteScheduler"),
        ({"threshold": "dynamic"}, STABLE_DIFFUSION, "hands on no use_clipped_model_output"),
        ({"sampler": "ddim(eta=0.5)"}, DIT, "hands on no eta"),
    ],
)
def test_what_has_no_twin_is_refused_by_name(change, caller, said):
    specs = SamplingSpecs(**vars(PLAIN) | change)
    with pytest.raises(UserError) as error:
        scheduler_config(specs, experiment.schedule(specs.schedule), caller, steps=10)
    assert said in str(error.value)
    assert "--format=safetensors" in str(error.value)


UNETS = [
    UNet(3, channels=4, multipliers=(1, 2), blocks=1, attention=(), groups=2, epsilon=1e-5, padding="both"),
    UNet(6, num_classes=10, channels=8, multipliers=(1, 2, 2), attention=(2, 4), head_channels=4, scale_shift=True),
    UNet(3, channels=8, multipliers=(1, 3), attention=(1,), resample="block", sinusoids="adm", dropout=0.1),
    UNet(4, text_features=6, channels=8, multipliers=(1, 2), attention=(1,), heads=2, depth=2, sinusoids="adm"),
    UNet(4, text_features=6, channels=8, multipliers=(1, 2), attention=(1, 2), head_channels=8),
]


@pytest.mark.parametrize("net", UNETS)
def test_a_unet_is_read_as_it_was_written(net):
    config = unet_config(_fields(net), options(UNet), size=(8, 16), in_channels=3)
    found = diffusers_options.unet(json.loads(json.dumps(config)), "there")
    told = {"num_classes": net.num_classes} if net.num_classes else {}
    rebuilt = UNet(found.out_channels, text_features=found.text_features, **(told | found.options))
    assert rebuilt == net
    assert (found.in_channels, found.size) == (3, (8, 16))


SD_1 = {  # as published
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD_2 = SD_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}


@pytest.mark.parametrize("published", [SD_1, SD_2])
def test_published_configs_are_written_as_they_were(published):
    """What changes nothing here, as upcast_attention, is kept as their layout."""
    found = diffusers_options.unet(published, "there")
    net = UNet(found.out_channels, text_features=found.text_features, **found.options)
    config = unet_config(_fields(net), options(UNet), size=found.size, in_channels=found.in_channels) | found.layout
    assert {key: config[key] for key in published} == published


def test_heads_that_are_counted_are_theirs_by_their_channels():
    """Where every attention has the same channels; a `UNet2DModel` has heads of so many channels, not so many heads."""
    net = UNet(3, channels=8, multipliers=(1, 2), attention=(2,), heads=4)
    assert unet_config(_fields(net), options(UNet), size=(8, 8), in_channels=3)["attention_head_dim"] == 4
    with pytest.raises(UserError, match=r"model.heads=4 at levels of \[8, 16\] channels has no twin"):
        unet_config(_fields(net.clone(attention=(1, 2))), options(UNet), size=(8, 8), in_channels=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"places": True, "text_features": 4}, "model.places=True"),
        ({"patch": 2}, "model.patch=2"),
        ({"concat": ("mask", "masked")}, "told mask, masked"),
        ({"levels": ("level",)}, "told level"),
        ({"text_features": 4, "num_classes": 3}, "both captions and classes"),
        ({"text_features": 4, "resample": "block"}, "model.resample='block'"),
        ({"text_features": 4, "head_channels": 3}, "model.head_channels=3 at a level"),
        ({"pooled_text": True, "text_features": 4}, "model.pooled_text=True"),
    ],
)
def test_a_unet_without_a_twin_is_refused_by_name(change, said):
    with pytest.raises(UserError, match=said):
        unet_config(_fields(UNETS[0].clone(**change)), options(UNet), size=(8, 8), in_channels=3)


def test_an_autoencoder_is_read_as_it_was_written():
    net = AutoencoderKL(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(2,), quant_convs=False)
    for scale in (0.18215, 0.13025, 1 / 3):
        config = autoencoder_config(_fields(net), size=(16, 16), scaling_factor=1 / (1 / scale))
        found = diffusers_options.autoencoder(json.loads(json.dumps(config)), "there")
        assert AutoencoderKL(found.channels, **found.options) == net
        assert (found.size, round(found.scaling_factor, 11)) == ((16, 16), round(scale, 11))
    assert (
        autoencoder_config(_fields(net), size=(16, 16), scaling_factor=1 / (1 / 0.18215))["scaling_factor"] == 0.18215
    )


@pytest.mark.parametrize(
    ("change", "size", "said"),
    [
        ({"sinusoids": "adm"}, (8, 8), "model.sinusoids='adm' of a DiT"),
        ({"num_classes": None}, (8, 8), "told anything but a class"),
        ({"mlp_ratio": 2.0}, (8, 8), "model.mlp_ratio=2.0"),
        ({"waves": 64}, (8, 8), "model.waves=64"),
        ({}, (8, 16), "8 x 16, which is no square"),
    ],
)
def test_a_dit_without_a_twin_is_refused_by_name(change, size, said):
    net = DiT(4, num_classes=5, width=8, depth=1, heads=2, sinusoids="ddpm")
    assert dit_config(_fields(net), options(DiT), size=(8, 8), in_channels=4)["attention_head_dim"] == 4
    with pytest.raises(UserError, match=said):
        dit_config(_fields(net.clone(**change)), options(DiT), size=size, in_channels=4)
