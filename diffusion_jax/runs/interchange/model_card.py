"""The model card of an export: the model, how to use it, its training, and its evaluations."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from ml_collections import ConfigDict

from diffusion_jax import config as configs
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_xl
from diffusion_jax.interop.diffusers_image_inputs import INPAINTING, UPSCALING
from diffusion_jax.interop.json_file import read_json
from diffusion_jax.runs.interchange.diffusers_folder import PIXEL_PIPELINES, DiffusersFolder
from diffusion_jax.runs.interchange.exported_run import ExportRecord, ProgramRecord
from diffusion_jax.runs.workdir.paths import Workdir

SAMPLED_PROMPT = "a photograph of an astronaut"

_LOOP = """import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({folder!r})
unet, scheduler, none = pipe.unet, pipe.scheduler, {classes}  # none: the number of no class
labels = torch.arange({shown})
x = torch.randn(len(labels), {channels}, {height}, {width}) * scheduler.init_noise_sigma
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        told = unet(given, t, labels).sample
        untold = unet(given, t, torch.full_like(labels, none)).sample
        x = scheduler.step(untold + {guidance} * (told - untold), t, x{call}).prev_sample
images = pipe.numpy_to_pil((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
"""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The checkpoint that is exported."""

    workdir: Workdir
    config: ConfigDict
    step: int
    weights: str
    licence: str | None  # the name of its file beside the card


class Score(TypedDict):
    """The keys of a score in an evaluation's JSON that the card needs."""

    label: str
    value: float
    how: Mapping[str, object]
    std: NotRequired[float | None]
    standard_error: NotRequired[float | None]


class Evaluated(TypedDict):
    """The keys of an evaluation's subject that the card needs."""

    checkpoint_step: int
    weights: str
    seeds: NotRequired[list[int]]
    sampling: NotRequired[Mapping[str, object] | None]


class Evaluation(TypedDict):
    """The keys of an evaluation's JSON that the card needs."""

    subject: Evaluated
    data: NotRequired[Mapping[str, str]]
    metrics: Mapping[str, Score]


def model_card(subject: Subject, out: Path, record: ExportRecord, theirs: DiffusersFolder | None) -> str:
    """The text of README.md; out is the path that the folder will have."""
    kind = f"a run of task {subject.config.task}, under the names of diffusion_jax"
    if theirs or "program" in record:
        kind = theirs.name if theirs else "the sampler as one program of jax.export"
    guidance = (record["sampling"] or {}).get("guidance", 1.0)
    python = f"```python\n{_use(subject, out, theirs, guidance)}```"
    sections = [
        _header(subject, theirs),
        f"# {out.resolve().name}\n\n{kind}, exported by diffusion_jax: {_origin(subject)}.",
        f"## Use\n\n{_script(subject, record['program']) if 'program' in record else python}",
        _notes(record["notes"]),
        f"Checked: {record['check']} (check.json)." if "check" in record else "",
        f"## Training\n\n{_training(subject)}",
        f"## Measured\n\n{_measured(subject)}",
    ]
    licence = f"See [{subject.licence}]({subject.licence})." if subject.licence else "None was given in the workdir."
    return "\n\n".join([*filter(None, sections), f"## Licence\n\n{licence}"]) + "\n"


def _header(subject: Subject, theirs: DiffusersFolder | None) -> str:
    lines = ["---", f"library_name: {'diffusers' if theirs else 'diffusion_jax'}"]
    if subject.config.task == "diffusion":
        lines.append(f"pipeline_tag: {_tag(subject.config)}")
    if subject.licence:
        lines += ["license: other", f"license_link: {subject.licence}"]
    return "\n".join([*lines, "---"])


def _tag(config: ConfigDict) -> str:
    if config.spatial:
        return "image-to-image"
    return "text-to-image" if config.text else "unconditional-image-generation"


def _origin(subject: Subject) -> str:
    where = f"step {subject.step:,}, weights {subject.weights}, of {subject.workdir.root.resolve().name}"
    if not subject.workdir.imported.is_file():
        return where
    imported = read_json(subject.workdir.imported)
    source = Path(str(imported.get("source"))).name
    return f"{where}, which was imported from {imported.get('model')} in {source}"


def _use(subject: Subject, out: Path, theirs: DiffusersFolder | None, guidance: object) -> str:
    """Lines of Python that draw samples with the folder, or load it."""
    folder = out.resolve().name
    if theirs is None:
        return f"from safetensors.numpy import load_file\n\nparams = load_file({f'{folder}/model.safetensors'!r})\n"
    if not theirs.is_pipeline:
        return f"from diffusers import {theirs.name}\n\nmodel = {theirs.name}.from_pretrained({folder!r})\n"
    call = ", ".join(f"{key}={value!r}" for key, value in theirs.call.items())
    if theirs.name in PIXEL_PIPELINES.values() and subject.config.model.num_classes:
        return _loop(subject, folder, theirs, guidance)
    prompt = repr(SAMPLED_PROMPT)
    asked = {
        "StableDiffusionPipeline": prompt,
        diffusers_xl.NAME: prompt,
        INPAINTING: f"{prompt}, image=image, mask_image=mask",
        UPSCALING: f"{prompt}, image=image",
        "DiTPipeline": "class_labels=[0, 1]",
    }
    opened = ""
    if theirs.name == INPAINTING:
        opened = "from PIL import Image\n\nimage, mask = (Image.open(file) for file in ('image.png', 'mask.png'))\n"
    elif theirs.name == UPSCALING:
        opened = "from PIL import Image\n\nimage = Image.open('small.png')\n"
    return (
        f"from diffusers import DiffusionPipeline\n{opened}\npipe = DiffusionPipeline.from_pretrained({folder!r})\n"
        f"images = pipe({asked.get(theirs.name, 'batch_size=4')}, {call}).images\n"
    )


def _script(subject: Subject, program: ProgramRecord) -> str:
    """The line that runs the script beside a program, and what the program takes."""
    told = f" --prompt {SAMPLED_PROMPT!r}" if "tokens" in program["inputs"] else ""
    told += " --label 0 1" if "label" in program["inputs"] else ""
    rows = "".join(f"| `{name}` | `{' '.join(map(str, shape))}` |\n" for name, shape in program["inputs"].items())
    return (
        f"```sh\npip install jax flatbuffers{' tokenizers' if 'tokens' in program['inputs'] else ''}\n"
        f"python sample_exported.py --num=4{told} --out=samples\n```\n\nThe program runs on "
        f"{', '.join(program['platforms'])}. Beside the parameters it takes, for any number B of samples:\n\n"
        f"| | type and shape |\n|---|---|\n{rows}\nIt gives `{' '.join(map(str, program['output']))}`."
    )


def _loop(subject: Subject, folder: str, theirs: DiffusersFolder, guidance: object) -> str:
    config = theirs.parts["unet"].config
    size = config["sample_size"]  # of a square, one number
    height, width = size if isinstance(size, list) else (size, size)
    call = {key: value for key, value in theirs.call.items() if key != "num_inference_steps"}
    return _LOOP.format(
        folder=folder,
        classes=subject.config.model.num_classes,
        shown=min(subject.config.model.num_classes, 10),
        channels=config["in_channels"],
        height=height,
        width=width,
        steps=theirs.call["num_inference_steps"],
        guidance=guidance,
        call="".join(f", {key}={value!r}" for key, value in call.items()),
    )


def _notes(notes: list[str]) -> str:
    return "Another in diffusers than in diffusion_jax:\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


def _training(subject: Subject) -> str:
    """The data, the steps, and the config keys that are not at their defaults."""
    config = subject.config
    if subject.workdir.imported.is_file():
        said = "The weights were imported; diffusion_jax did not train them."
    else:
        batch = config.train.batch_size
        said = (
            f"{subject.step:,} steps of {batch} examples of {config.data.source} (split {config.data.split}), "
            f"{config.optimizer.name} at {config.optimizer.learning_rate:g}."
        )
        said += f" It started from {config.init_from}." if config.init_from else ""
    defaults = configs.flat(configs.base(config.model.name).to_dict())
    changed = {key: value for key, value in configs.flat(config.to_dict()).items() if value != defaults.get(key)}
    rows = "\n".join(f"| `{key}` | `{json.dumps(value, ensure_ascii=False)}` |" for key, value in changed.items())
    return _without_folders(f"{said}\n\n| config, where it is not the default | |\n|---|---|\n{rows}")


def _without_folders(text: str) -> str:
    """The text with absolute paths cut to their last names, since folders of this machine tell a reader nothing."""
    return re.sub(r"(?<![\w./])/(?!/)(?:[^/\s'\"`,;()|]+/)*(?=[^/\s'\"`,;()|])", "", text)


def _measured(subject: Subject) -> str:
    """A table of the scores of this step and these weights in the workdir's evaluations, or a sentence for none."""
    folder = subject.workdir.root / "evaluations"
    rows, others = [], 0
    for file in sorted(folder.glob("*.json")):
        try:
            result = cast(Evaluation, read_json(file))  # a file that is none fails below
            about = result["subject"]
            if (about["checkpoint_step"], about["weights"]) != (subject.step, subject.weights):
                others += 1
                continue
            rows += [_row(score, result, file.name) for score in result["metrics"].values()]
        except (UserError, KeyError, TypeError, AttributeError):
            continue  # no evaluation as this version writes them
    if not rows:
        more = f"; it has {others} of other steps or weights" if others else ""
        return f"The workdir has no evaluation of this step and these weights{more}."
    head = "| score | value | of | sampling | evaluation |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def _row(score: Score, result: Evaluation, file: str) -> str:
    """The row of a score; raises KeyError, TypeError or AttributeError where the file holds no evaluation."""
    about = result["subject"]
    spread = score.get("standard_error", score.get("std"))
    value = f"{score['value']:.6g}" + (f" ± {spread:.2g}" if spread is not None else "")
    data = result.get("data", {})
    how = about.get("sampling") or {}
    said = ", ".join(f"{key} {how[key]}" for key in ("sampler", "steps", "guidance") if key in how)
    of = f"n = {score['how']['n']}, {data.get('source')} ({data.get('split')}), seeds {about.get('seeds')}"
    return f"| {score['label']} | {value} | {of} | {said or '-'} | `{file}` |"
