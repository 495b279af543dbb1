"""DiT against diffusers' DiTTransformer2DModel with the same weights: outputs and gradients."""

import pytest
from dit_twin import compare

from diffusion_jax.nets.dit import DiT

pytestmark = pytest.mark.parity

SMALL = DiT(8, num_classes=5, width=24, depth=2, heads=3, sinusoids="ddpm")


@pytest.mark.parametrize(
    ("net", "side", "channels"),
    [(SMALL, 8, 4), (SMALL.clone(out_channels=3, patch=4, depth=3, heads=2), 12, 3), (SMALL.clone(patch=1), 4, 4)],
    ids=["patch_2", "patch_4", "patch_1"],
)
def test_small_nets_agree_in_output_and_gradients(net, side, channels):
    output, gradients = compare(net, side, channels)
    assert output < 1e-4
    assert max(gradients.values()) < 1e-4, max(gradients.items(), key=lambda kv: kv[1])
