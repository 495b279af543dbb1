"""CLIP's towers and projections against transformers' CLIPModel with the same weights, read from its folder."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import UserError
from diffusion_jax.interop import huggingface_clip
from diffusion_jax.nets.clip import ClipVision, clip_score
from diffusion_jax.nets.text import ClipText

pytestmark = pytest.mark.parity

TOWER = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(transformers' model, every parameter random, and its folder with a tokenizer's vocabulary)."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    text = {"vocab_size": 99, "hidden_size": 32, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 1, **TOWER}
    vision = {"hidden_size": 40, "image_size": 32, "patch_size": 8, **TOWER}
    torch.set_num_threads(2)
    model = CLIPModel(CLIPConfig(projection_dim=24, text_config=text, vision_config=vision)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "\n".join(map(str, range(90))))
    return model, folder


def test_image_and_text_embeddings_and_their_score_are_those_of_transformers(clip):
    import torch

    theirs, folder = clip
    ours = huggingface_clip.load(str(folder))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 32, 32, 3)).astype(np.float32)
    ids = np.array([[97, 5, 9, 98, 1, 1], [97, 3, 2, 6, 8, 98], [97, 98, 1, 1, 1, 1]], np.int32)
    shapes = jax.eval_shape(ClipVision(**ours.vision).init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, ours.params["vision"]) == jax.tree.map(lambda a: a.shape, shapes)
    image = ClipVision(**ours.vision).apply({"params": ours.params["vision"]}, x) @ ours.params["vision_projection"]
    text = ClipText(**ours.text).apply({"params": ours.params["text"]}, ids).pooled @ ours.params["text_projection"]
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor(ids), pixel_values=torch.tensor(x.transpose(0, 3, 1, 2)))
        embedded = theirs.get_image_features(pixel_values=torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output
    np.testing.assert_allclose(image, embedded, atol=1e-4)
    np.testing.assert_allclose(image / np.linalg.norm(image, axis=1, keepdims=True), out.image_embeds, atol=1e-4)
    np.testing.assert_allclose(text / np.linalg.norm(text, axis=1, keepdims=True), out.text_embeds, atol=1e-4)
    cosine = (out.image_embeds * out.text_embeds).sum(dim=1).numpy()
    np.testing.assert_allclose(clip_score(image, text), 100 * np.maximum(cosine, 0), atol=1e-3)


def test_arrays_that_lack_are_left_over_or_are_of_another_size_are_named(clip, tmp_path):
    _, folder = clip
    whole = load_file(folder / "model.safetensors")
    name = "vision_model.post_layernorm.weight"
    damaged = {
        f"missing ['{name}']": {k: v for k, v in whole.items() if k != name},
        "left over ['vision_model.more']": whole | {"vision_model.more": np.zeros(1, np.float32)},
        "missing ['text_projection.weight']": {k: v for k, v in whole.items() if k != "text_projection.weight"},
        "vision_projection (40, 25), not (40, 24)": whole
        | {"visual_projection.weight": np.zeros((25, 40), np.float32)},
    }
    for file in ("config.json", "vocab.txt"):
        (tmp_path / file).write_text((folder / file).read_text())
    for message, arrays in damaged.items():
        save_file(arrays, tmp_path / "model.safetensors")
        with pytest.raises(UserError) as error:
            huggingface_clip.load(str(tmp_path))
        assert message in str(error.value)


def test_a_text_tower_alone_is_refused(clip, tmp_path):
    _, folder = clip
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config["text_config"]))
    with pytest.raises(UserError, match="type 'clip_text_model'; a whole CLIP model"):
        huggingface_clip.load(str(tmp_path))
