"""The direction of imports: cli -> runs -> build -> rooms -> core, and which libraries a room may use."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusion_jax"

# room: rooms that it may import beside itself and `errors`
ROOMS = {
    "errors": set(),
    "extensions": set(),
    "spec": {"extensions"},
    "config": {"nets"},
    "core": set(),
    "nets": {"core", "spec"},
    "data": {"spec", "extensions"},
    "report": set(),
    "sweeps": {"spec"},
    "train": {"core"},
    "evals": {"core"},
    "interop": set(),
    "build": {"spec", "config", "core", "nets", "data", "train", "evals", "interop"},
    "testing": {"core", "nets", "data", "build"},
    "launching": {"train"},
    "runs": {"sweeps", "build", "config", "core", "data", "train", "evals", "report", "interop", "launching"},
    "cli": {"runs", "train", "config", "launching", "extensions"},
    "__init__": set(),
    "__main__": {"cli"},
}

# library: rooms that may import it
LIBRARIES = {
    "flax": {"nets", "build"},
    "optax": {"train", "build"},
    "orbax": {"train"},
    "jax": {"core", "nets", "train", "evals", "interop", "build", "runs", "testing"},
    "chex": {"core", "nets", "build", "testing"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "sklearn": {"data"},
    "ml_collections": {"config", "build", "runs", "cli"},
    "absl": {"cli", "data"},
    "matplotlib": {"report"},
    "tensorboardX": {"report"},
    "rich": {"report"},
    "optuna": {"sweeps"},
    "submitit": {"runs"},
    "tokenizers": {"data"},
    "safetensors": {"interop"},
    "tensorflow": set(),
    "torch": set(),
    "diffusers": set(),
    "transformers": set(),
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


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_rooms(library):
    wrong = [where for where, room, name in imports() if name[0] == library and room not in LIBRARIES[library]]
    assert not wrong


def test_no_drawers():
    assert not [file for file in PACKAGE.rglob("*.py") if file.stem in ("utils", "util", "common", "helpers", "misc")]
