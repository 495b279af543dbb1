"""Importing from the Hugging Face hub: a cache built by hand, and a hub on this machine that counts what is fetched."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest
from import_command_test import WEIGHTS, import_, published  # noqa: F401  a fixture

from diffusion_jax.errors import UserError
from diffusion_jax.runs.interchange import hub
from diffusion_jax.runs.workdir.restored import restore

constants = pytest.importorskip("huggingface_hub.constants")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCHED = {"model_index.json", "LICENSE", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(cache, published, monkeypatch):  # noqa: F811
    """The snapshot of a model in the cache, of a commit to which its branch main points."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = cache / "models--owner--name"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(COMMIT)
    return shutil.copytree(published[0], model / "snapshots" / COMMIT)


@pytest.fixture
def online(cache, published, tmp_path, monkeypatch):  # noqa: F811
    """(the folder of a model that a hub on this machine serves, the names of its files that are fetched)."""
    folder, fetched = shutil.copytree(published[0], tmp_path / "served"), set()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_bytes(b"large")

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            if path == "/api/models/owner/name/revision/main":
                return self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
            if path.startswith(f"/api/models/owner/name/tree/{COMMIT}"):
                files = [file for file in folder.rglob("*") if file.is_file()]
                entries = [
                    {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0"}
                    for f in files
                ]
                return self.answer(json.dumps(entries).encode())
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            if name != path and (folder / name).is_file():
                if self.command == "GET":
                    fetched.add(name)
                return self.answer((folder / name).read_bytes())
            missing = "RevisionNotFound" if path.startswith("/api/models/owner/name/") else "RepoNotFound"
            return self.answer(b"{}", 404, {"X-Error-Code": missing})

        def answer(self, content, status=200, headers=()):
            self.send_response(status)
            etag = hashlib.sha1(content).hexdigest()
            given = {"Content-Length": len(content), "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, **dict(headers)}
            for key, value in given.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield folder, fetched
    server.shutdown()


def refused(source, **options):
    with pytest.raises(UserError) as raised:
        hub.fetched(hub.address(source), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_what_the_cache_has_is_imported_without_a_network(offline, published, tmp_path, revision):  # noqa: F811
    if revision == "":
        assert import_("hf://owner/name", tmp_path / "w") == 0
        record = json.loads((tmp_path / "w/imported.json").read_text())
        assert (record["source"], record["revision"]) == ("hf://owner/name", COMMIT)
        assert set(record["files"]) == FETCHED - {"LICENSE"}
        assert (tmp_path / "w/LICENSE").read_text() == "free"
        trained = restore(tmp_path / "w", step=None, average=True, overrides={})
        jax.tree.map(np.testing.assert_array_equal, trained.params, published[1])
    assert hub.fetched(hub.address(f"hf://owner/name{revision}")) == offline


def test_what_the_cache_lacks_is_one_sentence(offline, tmp_path, capsys):
    assert "hf://owner/other is not complete in the cache" in refused("hf://owner/other")
    assert "HF_HUB_OFFLINE=1 forbids to fetch it" in refused("hf://owner/name@v2")
    (offline / "unet" / WEIGHTS).unlink()
    assert f"hf://owner/name: unet/{WEIGHTS} is not in the hub's cache" in refused("hf://owner/name")
    assert import_("hf://owner/name", tmp_path / "w") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not (tmp_path / "w").exists()


def test_what_an_import_reads_is_fetched_and_no_more(online):
    folder, fetched = online
    root = hub.fetched(hub.address("hf://owner/name"))
    assert fetched == FETCHED | {"vae/config.json"}  # the JSON of a part that the pipeline turns out not to need
    assert root.name == COMMIT
    assert (root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()
    fetched.clear()
    hub.fetched(hub.address("hf://owner/name"), part="autoencoder")
    assert fetched == {f"vae/{WEIGHTS}"}


def test_what_is_not_imported_is_refused_before_weights_are_fetched(online):
    folder, fetched = online
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"new_option": 3}))
    assert "new_option=3 is unknown here" in refused("hf://owner/name")
    assert f"unet/{WEIGHTS}" not in fetched


def test_what_the_hub_lacks_is_one_sentence(online):
    folder, _ = online
    assert "the hub has no model owner/other" in refused("hf://owner/other")
    assert "owner/name has no revision v2; give a branch" in refused("hf://owner/name@v2")
    assert f"has no unet/{WEIGHTS.replace('model.', 'model.fp16.')}; leave out --variant" in refused(
        "hf://owner/name", variant="fp16"
    )
    (folder / "unet" / WEIGHTS).unlink()
    assert "a pickle is not read" in refused("hf://owner/name")


def test_a_variant_of_the_hub_is_asked_for(online):
    folder, _ = online
    (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert "give --variant=fp16" in refused("hf://owner/name")


@pytest.mark.parametrize("text", ["hf://owner", "hf://owner/name@", "hf:///name", "hf://owner/name/unet"])
def test_other_addresses_are_refused(text):
    with pytest.raises(UserError, match="give hf://OWNER/NAME or hf://OWNER/NAME@REVISION"):
        hub.address(text)
