"""Folders of text encoders, written here by the names in Hugging Face's files, with no torch at hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.data.tokens import from_folder
from diffusion_jax.errors import UserError
from diffusion_jax.interop.huggingface_text import load
from diffusion_jax.nets.text import TEXT_ENCODERS

SIZES = {"vocab_size": 11, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "clip": {**SIZES, "model_type": "clip_text_model", "max_position_embeddings": 7, "eos_token_id": 10},
    "bert": {**SIZES, "model_type": "bert", "max_position_embeddings": 7},
}


def dense(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name):
    return {f"{name}.weight": (4,), f"{name}.bias": (4,)}


def clip_shapes():
    shapes = {"text_model.embeddings.token_embedding.weight": (11, 4)}
    shapes |= {"text_model.embeddings.position_embedding.weight": (7, 4)}
    for i in range(2):
        layer = f"text_model.encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= dense(f"{layer}self_attn.{part}", 4, 4)
        shapes |= dense(f"{layer}mlp.fc1", 6, 4) | dense(f"{layer}mlp.fc2", 4, 6)
        shapes |= norm(f"{layer}layer_norm1") | norm(f"{layer}layer_norm2")
    return shapes | norm("text_model.final_layer_norm")


def bert_shapes():
    tables = {"word_embeddings": 11, "position_embeddings": 7, "token_type_embeddings": 2}
    shapes = {f"embeddings.{name}.weight": (rows, 4) for name, rows in tables.items()} | norm("embeddings.LayerNorm")
    for i in range(2):
        layer = f"encoder.layer.{i}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= dense(f"{layer}attention.{part}", 4, 4)
        shapes |= dense(f"{layer}intermediate.dense", 6, 4) | dense(f"{layer}output.dense", 4, 6)
        shapes |= norm(f"{layer}attention.output.LayerNorm") | norm(f"{layer}output.LayerNorm")
    return shapes


def arrays(kind):
    rng = np.random.default_rng(0)
    shapes = clip_shapes() if kind == "clip" else bert_shapes()
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(folder, kind, state=None, tokens=11, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] | config))
    save_file(arrays(kind) if state is None else state, folder / "model.safetensors")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(tokens - 5))]) + "\n")
    return str(folder)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_params_are_those_of_the_net_and_its_ids_those_of_the_tokenizer(tmp_path, kind):
    encoder = load(write(tmp_path, kind))
    net = TEXT_ENCODERS[encoder.family](**encoder.arguments)
    ids = from_folder(encoder.tokenizer).encode(["w0 w1", ""], net.length)
    expected = jax.eval_shape(net.init, jax.random.key(0), ids)["params"]
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a.shape}"), expected, encoder.params
    )
    out = jax.jit(net.apply)({"params": encoder.params}, ids)
    assert out.hidden.shape == (2, 7, 4)
    assert np.all(np.isfinite(out.hidden))


def test_matrices_are_turned_and_every_array_is_in_its_place(tmp_path):
    state, params = arrays("clip"), load(write(tmp_path / "clip", "clip")).params
    layer = "text_model.encoder.layers.1."
    for theirs, ours in (("self_attn.k_proj", "attention/key"), ("self_attn.out_proj", "attention/out")):
        part, name = ours.split("/")
        np.testing.assert_array_equal(params["layer_1"][part][name]["kernel"], state[f"{layer}{theirs}.weight"].T)
    np.testing.assert_array_equal(params["layer_1"]["up"]["kernel"], state[f"{layer}mlp.fc1.weight"].T)
    np.testing.assert_array_equal(params["layer_1"]["norm2"]["scale"], state[f"{layer}layer_norm2.weight"])
    np.testing.assert_array_equal(params["token"]["embedding"], state["text_model.embeddings.token_embedding.weight"])
    state, params = arrays("bert"), load(write(tmp_path / "bert", "bert")).params
    np.testing.assert_array_equal(
        params["layer_0"]["norm1"]["bias"], state["encoder.layer.0.attention.output.LayerNorm.bias"]
    )
    np.testing.assert_array_equal(params["layer_0"]["down"]["kernel"], state["encoder.layer.0.output.dense.weight"].T)
    # Every number that was written is read once.
    read = np.sort(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]))
    np.testing.assert_array_equal(read, np.sort(np.concatenate([value.ravel() for value in state.values()])))


@pytest.mark.parametrize("kind", CONFIGS)
def test_old_names_and_prefixes_and_what_is_knowingly_left_out(tmp_path, kind):
    expected = load(write(tmp_path / "plain", kind)).params
    state = arrays(kind)
    one = np.ones(3, np.float32)
    if kind == "clip":
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
        state |= {"vision_model.post_layernorm.weight": one, "text_projection.weight": one, "logit_scale": one}
        state["embeddings.position_ids"] = np.arange(7)
    else:
        state = {f"bert.{name}": value for name, value in state.items()}
        state = {
            name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for name, v in state.items()
        }
        state |= {"bert.pooler.dense.weight": one, "cls.predictions.bias": one}
        state["bert.embeddings.position_ids"] = np.arange(7)
    jax.tree.map(np.testing.assert_array_equal, load(write(tmp_path / "other", kind, state)).params, expected)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_halves_are_widened(tmp_path, dtype):
    state = {name: value.astype(dtype) for name, value in arrays("bert").items()}
    table = load(write(tmp_path, "bert", state)).params["token"]["embedding"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, state["embeddings.word_embeddings.weight"].astype(np.float32))


def test_missing_and_left_over_arrays_are_all_named_in_one_sentence(tmp_path):
    state = arrays("bert")
    for name in ("encoder.layer.0.output.dense.bias", "embeddings.LayerNorm.weight"):
        state[f"{name}.moved"] = state.pop(name)
    with pytest.raises(UserError) as error:
        load(write(tmp_path, "bert", state))
    missing, extra = str(error.value).split(": missing ")[1].split("; left over ")
    assert "'embeddings.LayerNorm.weight', 'encoder.layer.0.output.dense.bias'" in missing
    assert "'embeddings.LayerNorm.weight.moved', 'encoder.layer.0.output.dense.bias.moved'" in extra


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    state = arrays("bert")
    state["bert.embeddings.LayerNorm.gamma"] = np.zeros(4, np.float32)
    with pytest.raises(UserError, match=r"twice.*bert\.embeddings\.LayerNorm\.gamma"):
        load(write(tmp_path, "bert", state))


def test_pickles_are_refused_unopened_with_how_to_convert_them(tmp_path):
    folder = write(tmp_path, "clip")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model.safetensors but pytorch_model.bin; .*save_pretrained"):
        load(folder)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors$"):
        load(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    with pytest.raises(UserError, match="has 12 tokens but the network .* embeds 11"):
        load(write(tmp_path, "bert", tokens=12))
    write(tmp_path, "bert")
    (tmp_path / "added_tokens.json").write_text('{"new": 11}')
    with pytest.raises(UserError, match="has 12 tokens"):
        load(str(tmp_path))


def test_a_pipelines_tokenizer_lies_beside_its_text_encoder(tmp_path):
    folder = write(tmp_path / "text_encoder_2", "clip")
    (tmp_path / "tokenizer_2").mkdir()
    (tmp_path / "text_encoder_2" / "vocab.txt").rename(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="no tokenizer in .*text_encoder_2 or .*tokenizer_2"):
        load(folder)
    (tmp_path / "vocab.txt").rename(tmp_path / "tokenizer_2" / "vocab.txt")
    assert load(folder).tokenizer == str(tmp_path / "tokenizer_2")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5"}, "a model of type 't5'; the text encoders read here are of type clip, .*, bert"),
        ({"model_type": None}, "a model of type None"),
        ({"hidden_act": "swish"}, "hidden_act is one of .*'swish'"),
        ({"hidden_size": "4"}, "hidden_size must be .*'4'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'absolute'.*'relative_key'"),
        ({"hidden_size": 6}, r"other sizes than config.json's .*word_embeddings.weight \(11, 4\), not \(11, 6\)"),
        ({"num_hidden_layers": 1}, "missing \\[\\]; left over .*encoder.layer.1"),
    ],
)
def test_other_models_are_refused(tmp_path, config, words):
    with pytest.raises(UserError, match=words):
        load(write(tmp_path, "bert", **config))


def test_broken_files_are_said(tmp_path):
    with pytest.raises(UserError, match="there is no file .*config.json"):
        load(str(tmp_path / "nowhere"))
    folder = write(tmp_path, "bert", {**arrays("bert"), "embeddings.LayerNorm.bias": np.zeros(4, np.int32)})
    with pytest.raises(UserError, match="stored as int32"):
        load(folder)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        load(folder)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        load(folder)
