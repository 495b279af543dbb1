"""What samples are asked to be of: classes, captions and images, from flags and files to arrays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.conditions import Spatial, noised
from diffusion_jax.data import masks, transforms
from diffusion_jax.data.text_file import decode_text, lines_of
from diffusion_jax.data.tokens import Cut
from diffusion_jax.errors import UserError
from diffusion_jax.runs.workdir.restored import Trained, labels_for


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """What samples are to be of, as the command's flags say it; of several, samples take them in turn."""

    labels: Sequence[str] = ()
    prompts: Sequence[str] = ()
    negative_prompt: str | None = None
    low_res: Path | None = None  # an image, or the folder of `sample`d images
    augment: float = 0.0  # level of noise added to what is enlarged
    map: Path | None = None


def conditions(sample_request: SampleRequest, trained: Trained, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """An array [N, ...] for each condition of the model, N seeds; raises UserError for what the model is not told.

    An inpainting model's are not here: they are made of the image that is edited.
    """
    model = trained.model
    count = trained.num_classes
    cond = {"label": labels_for(seeds, sample_request.labels, count, trained.classes)} if count else {}
    if sample_request.labels and not trained.num_classes:
        raise UserError("--label needs a class-conditional model; this one has no classes")
    cond |= _captions(sample_request, trained, len(seeds))
    given = {"low_resolution": ("--low_res", sample_request.low_res), "map": ("--map", sample_request.map)}
    by_name = {condition.name: condition for condition in model.spatial}
    for name, (flag, path) in given.items():
        if name in by_name and path is None:
            raise UserError(f"this model draws what an image says; give {flag}=FILE")
        if name not in by_name and path is not None:
            told = [given[n][0] for n in by_name if n in given]
            raise UserError(f"{flag} is of a model trained with it; this one takes {', '.join(told) or 'no image'}")
    if low := by_name.get("low_resolution"):
        cond |= _low_resolution(low, sample_request, model.shape, seeds)
    if semantic := by_name.get("map"):
        cond |= _map(semantic, sample_request.map, model.shape, len(seeds))
    if sample_request.augment and not (low and low.levels):
        raise UserError("--augment is of a super-resolution model trained with noise; this one was not")
    return cond


def read_prompts(path: Path) -> list[str]:
    """The captions of a text file, one a line without spaces around it; empty lines are none.

    Raises UserError where there is no such file, or no caption in it.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; check --prompts")
    prompts = [line.strip(" \t") for line in lines_of(decode_text(path.read_bytes(), str(path))) if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={path} holds no caption; write one a line")
    return prompts


def cut_prompts(sample_request: SampleRequest, trained: Trained) -> list[Cut]:
    """What the text encoder does not read of prompts, in turn, and of the negative prompt: those that are too long."""
    text, tokenizer = trained.model.text, trained.tokenizer
    if text is None or tokenizer is None:
        return []
    negative = [] if sample_request.negative_prompt is None else [sample_request.negative_prompt]
    return tokenizer.encode_and_cut([*dict.fromkeys(sample_request.prompts), *negative], text.length)[1]


def _captions(sample_request: SampleRequest, trained: Trained, count: int) -> dict[str, np.ndarray]:
    text, tokenizer = trained.model.text, trained.tokenizer
    if text is None or tokenizer is None:
        if sample_request.prompts or sample_request.negative_prompt is not None:
            flag = "--prompt" if sample_request.prompts else "--negative_prompt"
            raise UserError(f"{flag} needs a model that is told captions; this one has no text encoder")
        return {}
    if not sample_request.prompts:
        raise UserError("this model is told captions; give --prompt=TEXT, or --prompt= for none")
    if sample_request.negative_prompt is not None and trained.how.guidance == 1:
        raise UserError("--negative_prompt is what guidance leads away from; give a --guidance other than 1")
    # Each text once, so that of those that are too long each is counted once.
    texts = list(
        dict.fromkeys(
            [
                *sample_request.prompts,
                *([] if sample_request.negative_prompt is None else [sample_request.negative_prompt]),
            ]
        )
    )
    row, ids = {each: i for i, each in enumerate(texts)}, text.encode(tokenizer, texts)
    cond = {"tokens": ids[[row[sample_request.prompts[i % len(sample_request.prompts)]] for i in range(count)]]}
    if sample_request.negative_prompt is not None:
        cond["negative"] = ids[[row[sample_request.negative_prompt]] * count]
    return cond


def _low_resolution(
    condition: Spatial, sample_request: SampleRequest, shape: tuple[int, int, int], seeds: np.ndarray
) -> dict[str, np.ndarray]:
    assert sample_request.low_res is not None
    height, width, channels = shape
    factor = condition.factor
    images = [
        transforms.decode(f.read_bytes(), channels=channels, name=str(f)) for f in _images(sample_request.low_res)
    ]
    if wrong := {a.shape[:2] for a in images} - {(height // factor, width // factor)}:
        raise UserError(
            f"--low_res {sample_request.low_res} is {_size(next(iter(wrong)))} pixels; this model enlarges "
            f"{height // factor} x {width // factor} to {height} x {width}"
        )
    # Repeated pixels, whose mean the condition takes again, are the image itself.
    low = np.stack([transforms.to_float(a).repeat(factor, 0).repeat(factor, 1) for a in images])
    parts = condition.parts({"image": jnp.asarray(low)})["low_resolution"]
    cond = {"low_resolution": np.asarray(parts)[np.arange(len(seeds)) % len(low)]}
    if condition.levels:
        if not 0 <= sample_request.augment < 1:
            raise UserError(f"--augment is in [0, 1); got {sample_request.augment}")
        level = np.full(len(seeds), sample_request.augment, np.float32)
        if sample_request.augment:
            keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.asarray(seeds))
            one = lambda key, x, s: noised(key, x[None], s[None])[0]  # noqa: E731
            cond["low_resolution"] = np.asarray(jax.vmap(one)(keys, cond["low_resolution"], level))
        cond[condition.levels[0]] = level
    return cond


def _map(condition: Spatial, path: Path | None, shape: tuple[int, int, int], count: int) -> dict[str, np.ndarray]:
    assert path is not None
    classes = condition.channels(1)["map"]
    if not path.is_file():
        raise UserError(f"there is no image at {path}; check --map")
    values = masks.read_classes(path.read_bytes(), name=f"--map {path}")
    if values.shape != shape[:2]:
        raise UserError(f"--map {path} is {_size(values.shape)} pixels and the model's {_size(shape[:2])}; make it fit")
    if values.max() >= classes:
        raise UserError(f"--map {path} has class {values.max()}, and the model knows 0 to {classes - 1}")
    parts = condition.parts({"map": jnp.asarray(values)[None]})
    return {name: np.repeat(np.asarray(a), count, axis=0) for name, a in parts.items()}


def _images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(f for f in path.glob("*.png") if f.stem.isdecimal()) if path.is_dir() else []
    if not files:
        raise UserError(f"--low_res {path} is neither an image nor a folder of samples")
    return files


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
