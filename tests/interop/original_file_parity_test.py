"""A file in Stable Diffusion's original layout: diffusers' own reader and ours take the same pipeline from it."""

import diffusers_folders as folders
import numpy as np
import original_layout
import pytest
from imported_pipelines import GUIDANCE, STEPS, drawn, import_

pytestmark = pytest.mark.parity


def pipeline(folder, second):
    """As `diffusers_folders.stable_diffusion`, with what a file does not tell: 32 groups, 8 heads or heads of 64."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=20,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_act="gelu" if second else "quick_gelu",
    )
    channels = (64, 128) if second else (32, 64)
    unet = UNet2DConditionModel(
        sample_size=96 if second else 64,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=[1, 2] if second else 8,
        use_linear_projection=second,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=128,
    )
    prediction = "v_prediction" if second else "epsilon"
    options = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "prediction_type": prediction}
    pipe = StableDiffusionPipeline(
        vae=folders.randomized(vae),
        text_encoder=folders.randomized(CLIPTextModel(text), 1),
        tokenizer=folders.tokenizer(folder / "words"),
        unet=folders.randomized(unet, 2),
        scheduler=DDIMScheduler(**folders.BETAS, **options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


@pytest.mark.parametrize("second", [False, True], ids=["1.x", "2.x"])
def test_one_file_is_the_pipeline_that_it_was_written_of(tmp_path, second):
    pipe = pipeline(tmp_path / "pipe", second)
    states = [
        {name: value.numpy() for name, value in part.state_dict().items()}
        for part in (pipe.unet, pipe.vae, pipe.text_encoder)
    ]
    file = original_layout.write(
        tmp_path / "sd.safetensors", *states, second=second, blocks=1, attends=[False, True], layers=2
    )
    theirs = type(pipe).from_single_file(str(file), config=str(tmp_path / "pipe"), local_files_only=True)
    for name in ("unet", "vae"):  # that the file is what it is taken for
        ours, wanted = getattr(theirs, name).state_dict(), getattr(pipe, name).state_dict()
        assert all((ours[key] == wanted[key]).all() for key in wanted)
    flags = [f"--tokenizer={tmp_path}/pipe/tokenizer", *(["--prediction=v"] if second else [])]
    assert import_(file, tmp_path / "w", *flags) == 0
    side = 96 if second else 64
    noise = np.random.default_rng(0).standard_normal((2, side, side, 4)).astype(np.float32)
    images = folders.draw(pipe, noise, steps=STEPS, guidance=GUIDANCE)
    ours = drawn(tmp_path / "w", noise, folders.PROMPT)
    assert images.std() > 0.05
    print(np.abs(ours - images).max())
    np.testing.assert_allclose(ours, images, rtol=0, atol=2e-3)
