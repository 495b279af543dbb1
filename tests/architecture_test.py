"""The direction of imports: cli -> runs -> experiment -> models, ... -> core, and which libraries a room may use."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusion_jax"

# room: rooms that it may import beside itself and `errors`
ROOMS = {
    "errors": set(),
    "extensions": set(),
    "spec": {"extensions"},
    "ranges": set(),
    "earlier_keys": set(),
    "schema": set(),
    "config": {"ranges", "nets", "earlier_keys", "schema"},
    "config_file": set(),
    "cache_folder": set(),
    "shipped_configs": set(),
    "core": set(),
    "nets": {"core", "spec", "ranges"},
    "data": {"spec", "extensions", "cache_folder"},
    "report": set(),
    "modalities": {"spec", "data", "report"},
    "sweeps": {"spec"},
    "train": {"core"},
    "evals": {"core"},
    "interop": {"core", "spec"},  # a scheduler's config is the inverse of a schedule's and a sampler's spec
    "models": {"spec", "core", "nets", "data", "train", "evals", "interop"},
    "experiment": {"spec", "config", "core", "nets", "data", "train", "evals", "interop", "models", "modalities"},
    "testing": {"core", "nets", "ranges", "data", "models", "modalities"},
    "launching": set(),
    "runs": {
        "cache_folder",
        "config",
        "schema",
        "extensions",
        "ranges",
        "core",
        "data",
        "train",
        "evals",
        "interop",
        "models",
        "experiment",
    }
    | {"report", "sweeps", "launching", "nets", "modalities"},
    "cli": {"runs", "train", "config", "config_file", "ranges", "launching", "extensions", "__version__"}
    | {"shipped_configs", "schema", "cache_folder"},
    "functions": {"runs"},
    "__init__": {"functions", "core", "config", "extensions", "train", "report"},
    "__main__": {"cli"},
}

# rooms of `runs`, a folder a feature, each of which may import those before it
FEATURES = ("workdir", "sample", "evaluate", "plan", "train", "sweep")
# ... and those that import `workdir` alone
APART = ("interchange", "launch", "help", "new", "report")

# library: rooms that may import it
LIBRARIES = {
    "flax": {"nets", "models", "experiment"},
    "optax": {"train", "experiment"},
    "orbax": {"train"},
    "jax": {"core", "nets", "train", "evals", "interop", "models", "experiment", "runs", "launching", "testing"},
    "chex": {"core", "nets", "train", "models", "testing"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "sklearn": {"data"},
    "ml_collections": {"config", "earlier_keys", "functions", "experiment", "runs", "cli"},  # who reads a config
    "absl": {"cli", "data"},
    "soundfile": {"data"},
    "pyarrow": {"data"},
    "array_record": {"data"},
    "soxr": {"data"},
    "matplotlib": {"report"},
    "tensorboardX": {"report"},
    "wandb": {"report"},
    "mlflow": {"report"},
    "rich": {"report"},
    "optuna": {"sweeps"},
    "submitit": {"runs"},
    "tokenizers": {"data"},
    "safetensors": {"interop"},
    "tensorflow": set(),
    "torch": {"interop"},  # in a file that a process of its own runs
    "diffusers": {"interop"},
    "transformers": set(),
    "huggingface_hub": {"runs"},
}


def imports():
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}:{node.lineno}: imports are absolute"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", room, name.split(".")


def test_every_room_is_known():
    assert {room for _, room, _ in imports()} <= set(ROOMS)


def test_rooms_import_only_what_lies_below_them():
    wrong = [
        f"{where} imports {'.'.join(name)}"
        for where, room, name in imports()
        if name[0] == "diffusion_jax" and name[1] not in ROOMS[room] | {room, "errors", "__version__"}
    ]
    assert not wrong


def test_features_import_only_those_before_them():
    order = {room: i for i, room in enumerate(FEATURES)}
    wrong = []
    for where, room, name in imports():
        if room != "runs" or name[:2] != ["diffusion_jax", "runs"]:
            continue
        mine, other = where.split("/")[1], name[2]
        below = other == "workdir" if mine in APART else order.get(other, len(order)) <= order[mine]
        if mine != other and not below:
            wrong.append(f"{where} imports {'.'.join(name)}")
    assert not wrong


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_rooms(library):
    wrong = [where for where, room, name in imports() if name[0] == library and room not in LIBRARIES[library]]
    assert not wrong


def test_no_drawers():
    assert not [file for file in PACKAGE.rglob("*.py") if file.stem in ("utils", "util", "common", "helpers", "misc")]
