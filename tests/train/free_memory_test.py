"""The memory there is: what the kernel says, and what a container leaves of it."""

import jax
import pytest

from diffusion_jax.train import memory, sharding

MEMINFO = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 2,000,000 KiB that are available, with no container."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTROL", tmp_path)
    return tmp_path


def limit(system, most):
    (system / "memory.max").write_text(f"{most}\n")
    (system / "memory.current").write_text("600000\n")
    (system / "memory.stat").write_text("anon 300000\ninactive_file 200000\n")


def test_the_least_of_what_the_kernel_and_the_container_leave(system):
    assert memory.host() == 2_000_000 * 1024
    limit(system, "max")
    assert memory.host() == 2_000_000 * 1024
    limit(system, 1_000_000)
    assert memory.host() == 1_000_000 - 600_000 + 200_000


def test_nobody_says(system):
    (system / "meminfo").unlink()
    assert memory.host() is None
    assert memory.a_device(sharding.mesh()) is None


def test_virtual_devices_share_the_host(system):
    assert memory.a_device(sharding.mesh(devices=jax.devices()[:4])) == 2_000_000 * 1024 // 4
