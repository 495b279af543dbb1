"""A DiT's config.json and its class names, as the published folder has them."""

import jax
import pytest

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.interop.diffusers_dit_options import class_names, dit, notes

PUBLISHED = {  # of DiT-XL/2 at 256 x 256, of an earlier version of diffusers
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}


def test_the_published_config_has_the_published_number_of_parameters():
    found = dit(PUBLISHED, "config.json")
    config = configs.base(found.family)
    config.model.update(found.options)
    config.data.shape, config.prediction = (32, 32, 4), "eps(learned_variance=True)"
    params = experiment.model(config).abstract
    positions = 256 * 1152  # which are counted there, and computed here
    assert sum(a.size for a in jax.tree.leaves(params)) + positions == 675_129_632
    assert (found.in_channels, found.out_channels, found.size) == (4, 8, (32, 32))
    assert "1e-6 here" in notes(PUBLISHED)[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single' has no twin here; 'ada_norm_zero'"),
        ({"cross_attention_dim": 768}, "cross_attention_dim=768 has no twin"),
        ({"num_embeds_ada_norm": None}, "does not say num_embeds_ada_norm"),
        ({"turbo": True}, "the option turbo=True is unknown"),
    ],
)
def test_what_has_no_twin_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        dit(PUBLISHED | changes, "config.json")


def test_class_names_are_told_apart_and_are_all_there_or_none():
    names = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane"}
    assert class_names({"id2label": names}, 3) == ("tench, Tinca tinca", "crane 1", "crane 2")
    assert class_names({"id2label": names}, 4) == class_names({}, 2) == ()
    with pytest.raises(UserError, match="no table"):
        class_names({"id2label": ["tench"]}, 1)
