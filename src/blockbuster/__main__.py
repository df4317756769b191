"""``python -m blockbuster``: the command ``blockbuster``."""

from __future__ import annotations

import sys

from blockbuster.cli import main

if __name__ == "__main__":
    sys.exit(main())
