"""How the documentation is built: ``make docs``."""

import blockbuster

project = "blockbuster"
project_copyright = "the blockbuster developers"
release = blockbuster.__version__
root_doc = "contents"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
autodoc_typehints = "none"
default_role = "literal"

# The types of numpydoc are words, such as "shape", which several classes have as attributes.
suppress_warnings = ["ref.python"]
