"""What a command sets for the devices of a machine: by the files of their drivers, and never over the user's own."""

import importlib.util
import subprocess
import sys

import pytest

from diffusion_jax.cli import accelerators

ALL = [f"--{name}={value}" for name, value in accelerators.GPU_FLAGS.items()]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes the files of a machine's drivers, with the packages that jax needs and a known jaxlib."""
    found = importlib.util.find_spec
    plugins = {"jax_cuda13_plugin", "libtpu"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in plugins else found(name))
    monkeypatch.setattr(accelerators.importlib.metadata, "version", lambda name: "0.10.2")

    def make(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    return make


def test_a_gpu_gets_flags_and_a_cache(machine):
    environment = {"HOME": "/home/me", "XDG_CACHE_HOME": "/cache"}
    said = accelerators.set_for_devices(environment, machine("dev/nvidia0"))
    assert environment["XLA_FLAGS"].split() == ALL
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/cache/diffusion_jax/compiled"
    assert all(part in said for part in (*ALL, "DIFFUSION_JAX_XLA_FLAGS=none", "/cache/diffusion_jax/compiled"))
    assert "\n" not in said
    # A process that this one starts finds all of it there.
    assert accelerators.set_for_devices(environment, machine("dev/nvidia0")) == ""


def test_a_tpu_gets_a_cache_alone(machine):
    environment = {}
    assert "XLA_FLAGS" not in accelerators.set_for_devices(environment, machine("dev/accel0"))
    assert list(environment) == ["JAX_COMPILATION_CACHE_DIR"]


def test_a_machine_without_either_gets_nothing(machine):
    environment = {}
    assert accelerators.set_for_devices(environment, machine("dev/null")) == ""
    assert environment == {}


def test_the_users_own_flags_win(machine):
    own = "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/dump"
    environment = {"XLA_FLAGS": own, "JAX_COMPILATION_CACHE_DIR": ""}
    accelerators.set_for_devices(environment, machine("dev/nvidia0"))
    assert environment["XLA_FLAGS"].startswith(own)
    assert environment["XLA_FLAGS"].split()[2:] == ALL[1:]
    assert environment["JAX_COMPILATION_CACHE_DIR"] == ""


@pytest.mark.parametrize(
    "own",
    [
        {"DIFFUSION_JAX_XLA_FLAGS": "none"},
        {"XLA_FLAGS": "/etc/xla_flags.txt"},  # a file of flags
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"JAX_PLATFORMS": "cpu"},
    ],
)
def test_flags_are_left_alone_where_they_are_not_wanted_or_of_no_use(machine, own):
    environment = dict(own)
    accelerators.set_for_devices(environment, machine("dev/nvidia0"))
    assert environment.get("XLA_FLAGS") == own.get("XLA_FLAGS")


def test_an_unknown_xla_is_given_no_flags(machine, monkeypatch):
    monkeypatch.setattr(accelerators.importlib.metadata, "version", lambda name: "9.9.9")
    environment = {}
    accelerators.set_for_devices(environment, machine("dev/nvidia0"))
    assert list(environment) == ["JAX_COMPILATION_CACHE_DIR"]


def test_without_jaxs_plugin_a_gpu_is_none(machine, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not accelerators.has_gpu({}, machine("dev/nvidia0", "proc/driver/nvidia/version"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--config=a"], True),
        (["doctor"], True),
        (["train", "--help"], False),
        (["keys"], False),
        (["launch", "worker", "--", "train", "--config=a"], True),
        (["launch", "slurm", "--", "train", "--config=a"], False),
        ([], False),
        (["plan", "--config=a"], True),
        (["plan", "--topology=v5e:4x4"], False),  # compiles for another machine
    ],
)
def test_commands_that_use_devices_are_told(machine, monkeypatch, capsys, words, told):
    root = machine("dev/nvidia0")
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(accelerators, "ROOT", root)
    accelerators.prepare(words)
    assert capsys.readouterr().err.count("\n") == told


def parsed(flags):
    """The exit status of a process in which XLA reads flags."""
    code = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    return subprocess.run(
        [sys.executable, "-c", code], env={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}, capture_output=True, timeout=120
    ).returncode


def test_the_installed_xla_knows_every_flag():
    """It ends a process at one that it does not know, on any device."""
    assert parsed(" ".join(ALL)) == 0
    assert parsed("--xla_gpu_no_such_flag=true") != 0
