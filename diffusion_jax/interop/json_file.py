"""The JSON files in folders that other libraries wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError


def read_json(file: Path, absent: str = "fetch the folder anew") -> dict[str, Any]:
    """The object in a JSON file; raises UserError where it holds none, and where there is no file, with what to do."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"there is no file {file}; {absent}") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); fetch it anew") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object; fetch it anew")
    return content


def write_json(file: Path, content: Mapping[str, object]) -> None:
    """Writes content as indented JSON."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
