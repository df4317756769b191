"""How the documentation is built: ``make docs``."""

import blockbuster

project = "blockbuster"
project_copyright = "the blockbuster developers"
release = blockbuster.__version__
html_title = f"{project} {release}"
html_theme = "furo"
pygments_dark_style = "github-dark"
html_static_path = ["static"]
html_css_files = ["site.css"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The tree of contents is in a file of its own, which index.md includes.
exclude_patterns = ["build", "contents.rst"]
myst_heading_anchors = 2
autodoc_typehints = "none"
napoleon_use_ivar = True
default_role = "literal"

# The types of numpydoc are words, such as "shape", which several classes have as attributes.
suppress_warnings = ["ref.python"]
