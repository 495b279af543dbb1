"""`diffusion-jax export`: a workdir as a folder that other libraries load. The folder appears whole or not at all."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from diffusion_jax import config as configs
from diffusion_jax import experiment
from diffusion_jax.errors import UserError
from diffusion_jax.interop import diffusers_weights
from diffusion_jax.interop.diffusers_pipeline import LICENCES
from diffusion_jax.interop.diffusers_scheduler_config import no_twin
from diffusion_jax.interop.json_file import read_json
from diffusion_jax.runs.interchange.diffusers_folder import DiffusersFolder, of_autoencoder, of_diffusion
from diffusion_jax.runs.interchange.export_check import FILE as REPORT
from diffusion_jax.runs.interchange.export_check import check, check_installed
from diffusion_jax.runs.interchange.exported_run import ExportedRun, ExportRecord, image_shape, read
from diffusion_jax.runs.interchange.exported_sampler import check_exportable, write_sampler
from diffusion_jax.runs.interchange.model_card import Subject, model_card
from diffusion_jax.runs.workdir.output_folder import OutputFolder
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train.provenance import versions
from diffusion_jax.train.state import Params

FORMATS = ("diffusers", "safetensors", "stablehlo")

DTYPES = ("float32", "float16")

RECORD = "export.json"
"""The file with an export's origin, which marks a complete export."""


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """The options of an export; fields are the command's flags."""

    format: str = "diffusers"
    dtype: str = "float32"
    step: int | None = None  # None: the newest checkpoint
    average: bool | float = True
    sampling: Mapping[str, object] = dataclasses.field(default_factory=dict)  # for keys of config.sample, if not None
    overwrite: bool = False
    check: bool = False  # compare its outputs with those of diffusers


def export(root: Path, out: Path, request: ExportRequest) -> None:
    """Exports a checkpoint of the workdir root to the folder out, in the requested format and with a model card.

    Raises UserError, before anything is written, for a model that the format cannot hold.
    """
    for name, value, choices in (("format", request.format, FORMATS), ("dtype", request.dtype, DTYPES)):
        if value not in choices:
            raise UserError(f"--{name} is one of {', '.join(choices)}; got {value!r}")
    if jax.process_count() > 1:
        raise UserError("export runs in one process; start it on one host")
    folder = OutputFolder(out, marker=RECORD)
    folder.check_replaceable("exports", overwrite=request.overwrite)
    run = read(root, step=request.step, average=request.average, sampling=request.sampling)
    theirs = _diffusers(run) if request.format == "diffusers" else None
    sampler = check_exportable(run) if request.format == "stablehlo" else None
    if request.check:
        check_installed(theirs, request.format)
    report, program = None, None
    with folder.written() as new:
        if theirs is not None:
            theirs.write(new, request.dtype)
        elif sampler is not None:
            program = write_sampler(sampler, new, request.dtype)
            _copy([run.workdir.classes], new)
        else:
            _write_own(run, new, request.dtype)
        licence = _copy_licence(run.workdir, new)
        if request.check and theirs is not None:
            report = check(new, run, theirs, request.dtype)
        record = _record(run, request, theirs)
        if program is not None:
            record["program"] = program
        if report is not None:
            record["check"] = report["sentence"]
        card = model_card(Subject(run.workdir, run.config, run.step, run.weights, licence), out, record, theirs)
        (new / "README.md").write_text(card, encoding="utf-8")
        (new / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
    for note in record["notes"]:
        print(f"another in diffusers than here: {note}")
    name = theirs.name if theirs else "a program that samples" if sampler else "parameters under our own names"
    print(f"step {run.step} ({run.weights}) of {root} as {name}: {out}")
    if report is not None:
        if not report["agrees"]:
            raise UserError(f"{report['sentence']}; the export is in {out}, and the report in {out / REPORT}")
        print(f"{report['sentence']}: {out / REPORT}")


def _diffusers(run: ExportedRun) -> DiffusersFolder:
    """The run as a folder of diffusers; raises UserError for a model that diffusers does not have."""
    imported = read_json(run.workdir.imported) if run.workdir.imported.is_file() else {}
    layout = imported.get("layout", {})
    if run.trained is not None:
        return of_diffusion(run.trained, run.workdir.text_encoder, layout)
    if run.scale is None:
        raise no_twin(f"a run of task {run.config.task}")
    net = experiment.autoencoder.network(run.config)
    part = of_autoencoder(
        net, run.params["autoencoder"], run.scale, image_shape(run.config)[:2], layout.get("autoencoder", {})
    )
    return DiffusersFolder("AutoencoderKL", {"": part})


def _write_own(run: ExportedRun, folder: Path, dtype: str) -> None:
    """Writes every parameter under its own name, a/b/c, and the other files that the model needs."""
    about = {"format": "diffusion_jax", "step": str(run.step), "weights": run.weights}
    diffusers_weights.save(_named(run.params), folder / "model.safetensors", dtype, about)
    (folder / "config.json").write_text(configs.to_json(run.config), encoding="utf-8")
    _copy([run.workdir.tokenizer, run.workdir.classes], folder)
    if run.trained is not None and (coder := run.trained.model.autoencoder) is not None:
        (folder / "autoencoder").mkdir()
        shutil.copyfile(run.workdir.autoencoder / "config.json", folder / "autoencoder/config.json")
        scaled = about | {"latent_std": repr(1 / coder.scale)}
        diffusers_weights.save(_named(coder.params), folder / "autoencoder/model.safetensors", dtype, scaled)
    if run.workdir.text_encoder.is_dir():
        shutil.copytree(run.workdir.text_encoder, folder / "text_encoder")


def _copy(files: Iterable[Path], folder: Path) -> None:
    """Copies those of the files that exist."""
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _named(params: Params) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _copy_licence(workdir: Workdir, folder: Path) -> str | None:
    """Copies the workdir's licence file to folder. Returns its name; None where there is none."""
    for name in LICENCES:
        if (workdir.root / name).is_file():
            shutil.copyfile(workdir.root / name, folder / name)
            return name
    return None


def _record(run: ExportedRun, request: ExportRequest, theirs: DiffusersFolder | None) -> ExportRecord:
    """The record of the export, without the result of --check."""
    return {
        "workdir": str(run.workdir.root),
        "checkpoint_step": run.step,
        "weights": run.weights,
        "format": request.format,
        "model": theirs.name if theirs else str(run.config.task),
        "dtype": request.dtype,
        "sampling": dataclasses.asdict(run.trained.how) if run.trained else None,
        "call": theirs.call if theirs else None,
        "notes": [*theirs.notes, *theirs.image_inputs.notes] if theirs else [],
        "versions": versions(),
    }
