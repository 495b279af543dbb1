"""How Sphinx builds the pages of this folder: `sphinx-build -W -b html docs docs/_build`."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
sys.path.insert(0, str(Path(__file__).parent.parent))  # the package of this checkout, with its configs

import diffusion_jax

project = "diffusion_jax"
author = "the authors of diffusion_jax"
copyright = author
release = version = diffusion_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "plain_docstrings", "generated", "links_outside"]
exclude_patterns = ["_build", "_extensions", "jupyter_execute"]
highlight_language = "text"  # of blocks that name no language
smartquotes = False  # -- in a text is that of a flag

html_theme = "furo"
html_title = f"diffusion_jax {version}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# Notebooks are Markdown without outputs. They run at every build; an error in a cell ends it.
nb_execution_mode = "force"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one notebook compiles, another need not
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="notebooks-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, on a machine that is busy otherwise
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # what drivers say of the machine

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 100

copybutton_exclude = ".linenos, .gp, .go"
