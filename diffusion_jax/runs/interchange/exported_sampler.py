"""`export --format=stablehlo`: the whole sampler as one program of `jax.export`, its parameters and a script beside it.

The program is (params, seeds [B], cond) -> samples [B, *S, C], for any B, on one CPU, GPU or TPU. It has guidance, text
encoder, the sampler's scan and decoder in it, and a schedule's numbers. The parameters are in a file of their own: one
buffer of flatbuffers, as a serialized program is, holds 2 GiB at most, and a constant of a program would be copied by
every compilation.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_weights
from diffusion_jax.models.conditions.condition import NEGATIVE
from diffusion_jax.nets.platforms import portable
from diffusion_jax.runs.interchange.exported_run import ExportedRun, ProgramRecord
from diffusion_jax.runs.interchange.sampling_script import sampling_script
from diffusion_jax.runs.workdir.restored import Trained
from diffusion_jax.train.state import Params

PROGRAM, PARAMETERS, SCRIPT, TOKENIZER = "sampler.jax_export", "parameters.npz", "sample_exported.py", "tokenizer.json"

PLATFORMS = ("cpu", "cuda", "tpu")

TOLD = ("label", "text")
"""The conditions that the script makes of its flags."""

Arrays = dict[str, np.ndarray]


def check_exportable(run: ExportedRun) -> Trained:
    """The model of the run; raises UserError for one whose sampler is not exported, and without flatbuffers."""
    trained = run.trained
    if trained is None:
        raise UserError(
            f"--format=stablehlo is of a sampler, and a run of task {run.config.task} has none; give "
            "--format=safetensors"
        )
    if others := [each.name for each in trained.model.conditions if each.name not in TOLD]:
        raise UserError(
            f"--format=stablehlo takes seeds, classes and captions, and this model is told {', '.join(others)}; give "
            "--format=safetensors"
        )
    if (text := trained.model.text) is not None and (text.second_tokenizer or text.zero_null):
        raise UserError(
            "--format=stablehlo takes captions of one text encoder whose empty caption is none; this model has "
            "Stable Diffusion XL's; give --format=safetensors"
        )
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "--format=stablehlo writes the program with flatbuffers, which is not installed; "
            "pip install 'diffusion-jax[export]'"
        )
    return trained


def write_sampler(trained: Trained, folder: Path, dtype: str) -> ProgramRecord:
    """Writes the program, its parameters as dtype, the script and, for a model of captions, the tokenizer to folder.

    Raises UserError where the network cannot be lowered for all platforms, or a parameter does not fit dtype.
    """
    tree = {"params": trained.params, "pretrained": _read_in_sampling(trained)}
    names, leaves = _named(tree)
    stored = jnp.dtype(dtype)
    exported = _exported(trained, tree, {name: _kept(leaf, stored) for name, leaf in zip(names, leaves, strict=True)})
    (folder / PROGRAM).write_bytes(exported.serialize())
    values = ((name, np.asarray(leaf)) for name, leaf in zip(names, leaves, strict=True))
    arrays = {name: diffusers_weights.cast(name, value, dtype) for name, value in values}
    np.savez(folder / PARAMETERS, allow_pickle=False, **arrays)
    (folder / SCRIPT).write_text(sampling_script(trained), encoding="utf-8")
    if trained.tokenizer is not None:
        (folder / TOKENIZER).write_text(trained.tokenizer.to_json(), encoding="utf-8")
    inputs = {"seeds": _described(_seeds("B")), **{name: _described(a) for name, a in _cond(trained, "B").items()}}
    return {
        "platforms": list(exported.platforms),
        "inputs": inputs,
        "output": ["float32", "B", *trained.model.shape],
        "calling_convention": exported.calling_convention_version,
    }


def _exported(trained: Trained, tree: Params, stored: Mapping[str, jax.ShapeDtypeStruct]) -> jax.export.Exported:
    """The program for all platforms; stored has its parameters by name, in the order of the tree's leaves."""
    draw = experiment.drawing(trained.model, trained.how)
    shapes, structure = jax.tree.flatten(tree)

    def sampler(params: Mapping[str, Array], seeds: Array, cond: Mapping[str, Array]) -> Array:
        read = [params[name].astype(leaf.dtype) for name, leaf in zip(stored, shapes, strict=True)]
        found = jax.tree.unflatten(structure, read)
        return draw(found["params"], found["pretrained"], seeds, dict(cond))

    (batch,) = jax.export.symbolic_shape("b")
    try:
        with portable():
            return jax.export.export(jax.jit(sampler), platforms=PLATFORMS)(
                dict(stored), _seeds(batch), _cond(trained, batch)
            )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            f"the sampler of {type(trained.model.network).__name__} cannot be lowered for any number of samples on "
            f"{', '.join(PLATFORMS)}: {str(error).splitlines()[0]}"
        ) from error


def _read_in_sampling(trained: Trained) -> dict[str, Params]:
    """The weights that are not trained and that sampling reads: of an autoencoder, those of its decoder."""
    pretrained = dict(trained.pretrained)
    if "autoencoder" in pretrained:
        encodes = ("encoder", "quant")
        pretrained["autoencoder"] = {k: v for k, v in pretrained["autoencoder"].items() if k not in encodes}
    return pretrained


def _seeds(batch: object) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch,), jnp.int32)


def _cond(trained: Trained, batch: object) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch is told, beside its seeds."""
    model, found = trained.model, {}
    if model.num_classes:
        found["label"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    if model.text is not None:
        tokens = jax.ShapeDtypeStruct((batch, model.text.length), jnp.int32)
        found["tokens"] = tokens
        if trained.how.guidance != 1:
            found[f"{NEGATIVE}tokens"] = tokens
    return found


def _named(tree: Params) -> tuple[list[str], list[Array]]:
    """The names a/b/c of the leaves, and the leaves."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found], [leaf for _, leaf in found]


def _kept(leaf: Array, stored: np.dtype) -> jax.ShapeDtypeStruct:
    """The shape of a parameter in the file, with the type `stored` where it holds floats."""
    floats = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(leaf.shape, stored if floats else leaf.dtype)


def _described(a: jax.ShapeDtypeStruct) -> list[object]:
    return [str(a.dtype), *a.shape]
