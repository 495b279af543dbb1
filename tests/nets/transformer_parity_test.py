"""The text-conditional U-Net against diffusers' UNet2DConditionModel with the same weights: outputs and gradients."""

import pytest
from unet_twin import compare

from diffusion_jax.nets.unet import UNet

pytestmark = pytest.mark.parity

SD = UNet(
    4,
    channels=16,
    multipliers=(1, 2),
    blocks=1,
    attention=(1,),
    heads=2,
    groups=8,
    epsilon=1e-5,
    sinusoids="adm",
    padding="both",
    text_features=12,
)


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (SD, {}),
        (SD.clone(head_channels=8, attention=(2,)), {"linear_projection": True}),
        (SD.clone(head_channels=8, attention=(), depth=2), {"linear_projection": True, "masked": True}),
        (SD.clone(attention=(), concat=("mask", "low"), levels=("augmentation",)), {"in_channels": 6}),
    ],
    ids=["sd1", "sd2", "two_layers_and_masked_text", "concat_and_level"],
)
def test_text_conditional_nets_agree_in_output_and_gradients(net, options):
    output, gradients = compare(net, (8, 4), **{"in_channels": 4, **options})
    assert output < 1e-4
    assert max(gradients.values()) < 1e-4, max(gradients.items(), key=lambda kv: kv[1])
