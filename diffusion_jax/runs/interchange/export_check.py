"""`export --check`: the outputs of diffusers and torch for an export, compared with ours."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import experiment
from diffusion_jax.core.samplers.loop import standard_normal, start_noise
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditions import Caption, RequestSetting, default_numbers
from diffusion_jax.models.sampling import START
from diffusion_jax.nets.autoencoder import AutoencoderKL
from diffusion_jax.runs.interchange.diffusers_folder import DiffusersFolder, network_params
from diffusion_jax.runs.interchange.exported_run import ExportedRun, image_shape
from diffusion_jax.runs.interchange.image_inputs_check import random_image_inputs
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params

FILE = "check.json"

SCRIPT = Path(__file__).parents[2] / "interop/diffusers_twin.py"

PROMPTS = ["a red cat", "the sea at night"]

STEPS = 5
"""Of the samples that are compared, or as many as the schedule has."""

TOLERANCE = 2e-3
"""The largest difference that counts as rounding, of arrays whose largest value is 1 or less; times that value else."""

Arrays = dict[str, np.ndarray]


class Difference(TypedDict):
    """How one array of diffusers differs from ours."""

    largest_difference: float
    largest_value: float  # of ours
    agrees: bool  # within `TOLERANCE`


class Report(TypedDict):
    """What check.json holds."""

    sentence: str  # the result for a person
    agrees: bool  # but for what the export's notes say
    compared: dict[str, Difference]
    tolerance: float
    sample: dict[str, object]  # how the samples that are compared were drawn
    versions: dict[str, str]


def check_installed(theirs: DiffusersFolder | None, chosen: str) -> None:
    """Raises UserError where a package that the check needs is not installed, or the chosen format not diffusers'."""
    if theirs is None:
        raise UserError(f"--check compares with diffusers, which does not read --format={chosen}; leave out one")
    needed = ["torch", "diffusers", *(["transformers"] if theirs.text else [])]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--check runs the export with {' and '.join(needed)}, and {' and '.join(missing)} cannot be found; "
            f"install with pip install {' '.join(missing)}, or leave out --check"
        )


def check(folder: Path, run: ExportedRun, theirs: DiffusersFolder, dtype: str) -> Report:
    """Compares our outputs with those of diffusers; writes the report to check.json in folder, and returns it.

    Both sides compute in float32 with the parameters rounded to dtype. Raises UserError, with the last line of the
    traceback, where diffusers cannot load or run the folder.
    """
    request, inputs, ours = _ours(run, theirs, dtype)
    found = _theirs(folder, request, inputs)
    compared = {name: _compare(ours[name], found[name]) for name in ours}
    differ = [name for name, each in compared.items() if not each["agrees"]]
    expected = bool(theirs.notes) and differ == ["sample"]
    report: Report = {
        "sentence": _sentence(compared, differ, theirs.notes if expected else ()),
        "agrees": not differ or expected,
        "compared": compared,
        "tolerance": TOLERANCE,
        "sample": {key: request.get(key) for key in ("steps", "call", "guidance", "prompts")},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
    }
    (folder / FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")
    return report


def _compare(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    if ours.shape != theirs.shape:
        raise UserError(f"diffusers gives arrays of shape {theirs.shape} where {ours.shape} is right; --check failed")
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    agrees = bool(difference <= TOLERANCE * max(largest, 1.0))
    return {"largest_difference": difference, "largest_value": largest, "agrees": agrees}


def _sentence(compared: Mapping[str, Difference], differ: list[str], notes: tuple[str, ...]) -> str:
    numbers = ", ".join(f"{name} {each['largest_difference']:.1e}" for name, each in compared.items())
    if not differ:
        return f"diffusers computes the same: largest differences {numbers}"
    if notes:
        return f"diffusers computes the same but for the sampling, as the notes say: largest differences {numbers}"
    return f"diffusers computes other values in {', '.join(differ)}: largest differences {numbers}"


def _theirs(folder: Path, request: Mapping[str, object], inputs: Arrays) -> Arrays:
    """The outputs of diffusers, from a process without jax; raises UserError where it fails."""
    with tempfile.TemporaryDirectory() as name:
        exchange = Path(name)
        (exchange / "request.json").write_text(json.dumps({"folder": str(folder), **request}))
        np.savez(exchange / "inputs.npz", **inputs)  # type: ignore[arg-type]
        run = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), name],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise UserError(
                f"diffusers cannot run the export: {(run.stderr.strip() or 'it was killed').splitlines()[-1]}"
            )
        with np.load(exchange / "outputs.npz") as found:
            return dict(found)


def _ours(run: ExportedRun, theirs: DiffusersFolder, dtype: str) -> tuple[dict[str, object], Arrays, Arrays]:
    """(the request to diffusers, its input arrays, our output arrays)."""
    rng = np.random.default_rng(0)
    request: dict[str, object] = {"name": theirs.name, "call": theirs.call}
    if run.trained is None:
        net = experiment.autoencoder.network(run.config).clone(dtype=jnp.float32)
        return request, *_autoencoder(net, _rounded(run.params["autoencoder"], dtype), image_shape(run.config), rng)
    trained = dataclasses.replace(
        run.trained,
        model=_in_float32(run.trained.model),
        params=_rounded(run.trained.params, dtype),
        pretrained={name: _rounded(tree, dtype) for name, tree in run.trained.pretrained.items()},
    )
    inputs, outputs = _network(trained, rng)
    if theirs.is_pipeline:
        if (coder := trained.model.autoencoder) is not None:
            more = _autoencoder(coder.network, trained.pretrained["autoencoder"], trained.model.shape, rng)
            inputs, outputs = inputs | more[0], outputs | more[1]
        sampled = _sample(trained, theirs)
        request, inputs, outputs = request | sampled[0], inputs | sampled[1], outputs | sampled[2]
    return request, inputs, outputs


def _in_float32(model: experiment.Model) -> experiment.Model:
    """The model with networks that compute in float32."""
    coder, conditions = model.autoencoder, []
    for each in model.conditions:
        if isinstance(each, Caption):
            network = each.encoder.network.clone(dtype=jnp.float32)
            each = dataclasses.replace(each, encoder=dataclasses.replace(each.encoder, network=network))
        conditions.append(each)
    if coder is not None:
        coder = dataclasses.replace(coder, network=coder.network.clone(dtype=jnp.float32))
    network = model.network.clone(dtype=jnp.float32)
    return dataclasses.replace(model, network=network, autoencoder=coder, conditions=tuple(conditions))


def _network(trained: Trained, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """(inputs, outputs) of the network at the last time and at half of the steps."""
    model = trained.model
    steps = model.schedule.steps or 1
    inputs = {"x": _normal(rng, (2, *model.x_shape)), "t": np.array([steps - 1, steps // 2], np.float32)}
    cond: Arrays = {name: _normal(rng, (2, *a.shape[1:])) for name, a in _concatenated(model).items()}
    told = [inputs["x"], *cond.values()]
    for name in model.network.levels:
        inputs["labels"] = np.arange(2)
        cond[name] = np.arange(2, dtype=np.float32)
    if model.num_classes:
        cond["label"] = inputs["labels"] = np.arange(2) % model.num_classes
    if model.text is not None:
        cond["text"] = inputs["text"] = _normal(rng, (2, model.text.length, model.text.width))
        if model.network.pools_text:
            width = model.text.pooled_width or model.text.width
            cond["text_pooled"] = inputs["text_pooled"] = _normal(rng, (2, width))
    for name in model.network.numbers:
        sizes = [(64, 32, 3, 5, 96, 128), (16, 8, 0, 1, 24, 512)]
        cond[name] = inputs["numbers"] = np.asarray(sizes, np.float32)
    out = jax.jit(model.network.apply)({"params": network_params(trained)}, inputs["x"], inputs["t"], cond)
    return inputs | {"x": np.concatenate(told, axis=-1)}, {"network": np.asarray(out)}


def _concatenated(model: experiment.Model) -> dict[str, jax.Array]:
    """The entries [1, *S, C'] whose channels follow those of x, of zeros."""
    return {name: a for name, a in model.network_entries().items() if name in model.network.concat}


def _autoencoder(
    net: AutoencoderKL, params: Params, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Arrays, Arrays]:
    image = rng.uniform(-1, 1, (1, *shape)).astype(np.float32)
    mean = np.asarray(net.apply({"params": params}, image, method="encode")[0])
    latent = _normal(rng, mean.shape)
    decoded = np.asarray(net.apply({"params": params}, latent, method="decode"))
    return {"image": image, "latent": latent}, {"encoded": mean, "decoded": decoded}


def _sample(trained: Trained, theirs: DiffusersFolder) -> tuple[dict[str, object], Arrays, Arrays]:
    """(request, inputs, outputs) of samples in a few steps, with the hidden states of their prompts."""
    model, call = trained.model, theirs.call
    guidance = call.get("guidance_scale", trained.how.guidance)
    how = dataclasses.replace(
        trained.how,
        steps=min(STEPS, trained.how.steps, model.schedule.steps or STEPS),
        guidance=guidance,
        guidance_rescale=call.get("guidance_rescale", 0.0) if guidance != 1 else 0.0,
        guidance_interval=(),
    )
    count = max(2, trained.share)
    seeds = jnp.arange(count)
    noise = start_noise(seeds, model.x_shape)
    # The second of each seed's keys is that of the steps, as `core.samplers.sample` splits it.
    keys = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))[1]
    draws = np.stack([standard_normal(keys, step, 0, noise) for step in range(how.steps)])
    inputs = {"noise": np.asarray(noise), "step_noise": draws}
    request: dict[str, object] = {"steps": how.steps, "guidance": guidance, "none": model.num_classes}
    cond: dict[str, jax.Array | np.ndarray] = {START: noise}
    outputs = {}
    if model.num_classes:
        inputs["labels"] = np.arange(count) % model.num_classes
        cond["label"] = jnp.asarray(inputs["labels"], jnp.int32)
    if model.text is not None:
        assert trained.tokenizer is not None
        request["prompts"] = prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
        cond["tokens"] = model.text.encode(trained.tokenizer, prompts)
        weights = {"params": trained.pretrained["text"]}
        encoded: Any = model.text.network.apply(weights, cond["tokens"])
        outputs["text"] = np.asarray(encoded.hidden)
    cond |= default_numbers(model.conditions, RequestSetting(np.asarray(seeds, np.int32), model.shape))
    told_inputs, told_cond = random_image_inputs(model, count)
    inputs, cond = inputs | told_inputs, cond | told_cond
    program = experiment.sample_program(model, how, trained.mesh)
    images = program(trained.params, trained.pretrained, np.asarray(seeds, np.int32), cond)
    return request, inputs, outputs | {"sample": np.clip(np.asarray(images) / 2 + 0.5, 0, 1)}


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _rounded(params: Params, dtype: str) -> Params:
    """The parameters rounded to dtype, as float32."""
    return params if dtype == "float32" else jax.tree.map(lambda a: a.astype(dtype).astype(jnp.float32), params)
