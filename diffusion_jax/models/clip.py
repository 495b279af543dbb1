"""CLIP for the evaluation of samples: features of images, and how well an image fits its caption."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import jax
from jax import Array
from jax.sharding import Mesh

from diffusion_jax.data import tokens
from diffusion_jax.interop import huggingface_clip
from diffusion_jax.interop.huggingface_text import WEIGHTS
from diffusion_jax.models.features import Features
from diffusion_jax.nets.clip import ClipVision, clip_score, preprocess
from diffusion_jax.nets.text import ClipText, Encoded
from diffusion_jax.train import sharding
from diffusion_jax.train.state import Params

CLIP = "clip"

RESIZE = "cubic, a = -1/2, antialiased, to bytes; central crop"


@dataclasses.dataclass(frozen=True, eq=False)
class ClipScore:
    """A function that scores how well images fit captions, and its record."""

    apply: Callable[[Array, Sequence[str]], Array]
    """(uint8 [B, H, W, C] on the devices, B captions) -> [B] in [0, 100]."""
    record: Mapping[str, str]


def features(folder: Path, mesh: Mesh) -> Features:
    """The image embeddings, projected and not normalized, of the CLIP model in a Hugging Face folder."""
    model, params, record = _load(folder, mesh)
    split = sharding.batch_sharding(mesh)

    def program(params: Params, images: Array) -> dict[str, Array]:
        return {"pooled": _image(model, params, images)}

    run = jax.jit(program, in_shardings=(None, split), out_shardings=split)
    return Features(lambda images: run(params, images), record)


def score(folder: Path, mesh: Mesh) -> ClipScore:
    """100 max(cos, 0) of the embeddings of image and caption, by the CLIP model in a Hugging Face folder."""
    model, params, record = _load(folder, mesh)
    split = sharding.batch_sharding(mesh)
    tokenizer = tokens.from_folder(model.tokenizer)

    def program(params: Params, images: Array, ids: Array) -> Array:
        encoded = cast(Encoded, ClipText(**model.text).apply({"params": params["text"]}, ids))
        return clip_score(_image(model, params, images), encoded.pooled @ params["text_projection"])

    run = jax.jit(program, in_shardings=(None, split, split), out_shardings=split)

    def apply(images: Array, captions: Sequence[str]) -> Array:
        return run(params, images, tokenizer.encode(list(captions), model.text["length"]))

    return ClipScore(apply, record)


def _image(model: huggingface_clip.Clip, params: Params, images: Array) -> Array:
    pixels = preprocess(images, model.vision["side"])
    pooled = cast(Array, ClipVision(**model.vision).apply({"params": params["vision"]}, pixels))
    return pooled @ params["vision_projection"]


def _load(folder: Path, mesh: Mesh) -> tuple[huggingface_clip.Clip, Params, dict[str, str]]:
    model = huggingface_clip.load(str(folder))
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    params = sharding.to_mesh(model.params, sharding.replicated(mesh))
    return model._replace(params={}), params, {"extractor": CLIP, "sha256": digest, "resize": RESIZE}
