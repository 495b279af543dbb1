"""The text encoders against transformers' with the same weights, read from the folders that transformers writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data.tokens import from_folder
from diffusion_jax.errors import UserError
from diffusion_jax.interop.huggingface_text import load
from diffusion_jax.nets.text import TEXT_ENCODERS

pytestmark = pytest.mark.parity

VOCABULARY, EOS, LENGTH = 99, 98, 77
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def saved(model, folder):
    """Every parameter random, none zero or one; in eval mode, saved in a folder with a tokenizer's vocabulary."""
    import torch

    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    model.eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "\n".join(map(str, range(90))))
    return model


def clip(folder, **config):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {"bos_token_id": 97, "eos_token_id": EOS, "pad_token_id": 1, **SIZES, **config}
    return saved(CLIPTextModel(CLIPTextConfig(**config)), folder)


def bert(folder, **config):
    from transformers import BertConfig, BertModel

    return saved(BertModel(BertConfig(max_position_embeddings=LENGTH, **SIZES, **config)), folder)


def texts(pad=EOS):
    """Three texts of 1, 20 and 75 tokens between bos and eos, padded to 77: the last fills all positions."""
    rng = np.random.default_rng(0)
    tokens = np.full((3, LENGTH), pad, np.int32)
    for row, length in zip(tokens, (1, 20, 75), strict=True):
        row[: length + 2] = [97, *rng.integers(2, 97, length), EOS]
    mask = np.arange(LENGTH) < np.array([3, 22, 77])[:, None]
    return tokens, mask


def ours(folder, tokens, mask=None, **options):
    family, arguments, params, _ = load(str(folder))
    net = TEXT_ENCODERS[family](**arguments | options)
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return net.apply({"params": params}, tokens, mask)


def theirs(model, tokens, **inputs):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), **{k: torch.from_numpy(v) for k, v in inputs.items()})


def error(a, b):
    return np.abs(np.asarray(a) - b.detach().numpy()).max()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_new"])
def test_clip(tmp_path, activation, record_property):
    model = clip(tmp_path, hidden_act=activation)
    tokens, _ = texts()
    out, expected = ours(tmp_path, tokens), theirs(model, tokens)
    assert np.std(np.asarray(out.hidden)) > 0.5
    record_property("error", float(error(out.hidden, expected.last_hidden_state)))
    assert error(out.hidden, expected.last_hidden_state) < 1e-4
    assert error(out.pooled, expected.pooler_output) < 1e-4


def test_clip_with_a_mask_agrees_on_all_positions(tmp_path):
    model = clip(tmp_path)
    tokens, mask = texts()
    out, expected = ours(tmp_path, tokens, mask), theirs(model, tokens, attention_mask=mask.astype(np.int64))
    assert error(out.hidden, expected.last_hidden_state) < 1e-4
    assert error(out.pooled, expected.pooler_output) < 1e-4


def test_clip_penultimate_is_one_layer_less_through_the_final_norm(tmp_path):
    model = clip(tmp_path, hidden_act="gelu")
    tokens, _ = texts(pad=0)
    out, expected = ours(tmp_path, tokens, penultimate=True), theirs(model, tokens)
    model.encoder.layers = model.encoder.layers[:-1]
    assert error(out.hidden, theirs(model, tokens).last_hidden_state) < 1e-4
    assert error(out.hidden, expected.last_hidden_state) > 1e-2
    assert error(out.pooled, expected.pooler_output) < 1e-4


def test_clip_of_old_configs_is_pooled_at_the_highest_token(tmp_path):
    model = clip(tmp_path, eos_token_id=2)
    tokens, _ = texts(pad=0)
    tokens[1, 4] = 2
    out = ours(tmp_path, tokens)
    assert error(out.pooled, theirs(model, tokens).pooler_output) < 1e-4
    np.testing.assert_array_equal(out.pooled[1], out.hidden[1, 21])


def test_clip_of_a_whole_model_with_its_vision_tower(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    text = {"bos_token_id": 97, "eos_token_id": EOS, "pad_token_id": 1, **SIZES}
    model = saved(CLIPModel(CLIPConfig(text_config=text, vision_config=vision)), tmp_path)
    tokens, _ = texts()
    assert error(ours(tmp_path, tokens).hidden, theirs(model.text_model, tokens).last_hidden_state) < 1e-4


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_bert(tmp_path, activation):
    model = bert(tmp_path, hidden_act=activation)
    tokens, mask = texts(pad=0)
    out = ours(tmp_path, tokens)
    expected = theirs(model, tokens, attention_mask=mask.astype(np.int64)).last_hidden_state
    np.testing.assert_array_equal(out.mask, mask)
    assert np.std(np.asarray(out.hidden)) > 0.5
    assert error(out.hidden, expected) < 1e-4
    np.testing.assert_array_equal(out.pooled, out.hidden[:, 0])


def test_bert_reads_token_types_and_short_texts(tmp_path):
    model = bert(tmp_path)
    tokens = texts()[0][:, :9]
    types = np.broadcast_to(np.arange(9) > 4, tokens.shape).astype(np.int32)
    family, arguments, params, _ = load(str(tmp_path))
    mask = np.ones(tokens.shape, bool)
    out = TEXT_ENCODERS[family](**arguments).apply({"params": params}, tokens, mask, types=types)
    assert error(out.hidden, theirs(model, tokens, token_type_ids=types.astype(np.int64)).last_hidden_state) < 1e-4


def test_bert_of_a_language_model_in_bfloat16_with_old_names(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(max_position_embeddings=LENGTH, **SIZES)).to(torch.bfloat16)
    model = saved(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    tokens, _ = texts(pad=0)
    expected = theirs(model.to(torch.float32).bert, tokens, attention_mask=(tokens != 0).astype(np.int64))
    assert error(ours(tmp_path, tokens).hidden, expected.last_hidden_state) < 1e-4


@pytest.mark.parametrize("twin", [clip, bert])
def test_a_pickle_is_read_once_converted_as_the_error_says(tmp_path, twin):
    import torch

    model = twin(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as raised:
        load(str(tmp_path))
    exec("from transformers import AutoModel; " + str(raised.value).split("unpickles: ")[1])
    tokens, mask = texts()
    expected = theirs(model, tokens, attention_mask=mask.astype(np.int64)).last_hidden_state
    assert 0 < error(ours(tmp_path, tokens, mask).hidden, expected) < 1e-4


def test_from_captions_to_features_as_transformers_does_it(tmp_path):
    from transformers import BertTokenizer

    model = bert(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    captions = ["", "1 2 3", " ".join(map(str, range(90)))]
    twin = BertTokenizer.from_pretrained(tmp_path)(
        captions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    tokenizer = from_folder(load(str(tmp_path)).tokenizer)
    tokens = tokenizer.encode(captions, LENGTH)
    out = ours(tmp_path, tokens, tokenizer.mask(tokens))
    assert error(out.hidden, model(**twin).last_hidden_state) < 1e-4
