"""What pyproject.toml has no words for: the top-level configs/ go into the wheel, as diffusion_jax/shipped/configs."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """The package and the configs, which a clone keeps outside of it."""

    def run(self):
        """Builds, then copies."""
        super().run()
        if self.editable_mode:  # which reads those of the clone
            return
        for file in sorted(Path("configs").rglob("*.py")):
            target = Path(self.build_lib, "diffusion_jax", "shipped", file)
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": WithConfigs})
