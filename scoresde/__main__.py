"""``python -m scoresde``, as ``scoresde``: what ``accelerate launch -m scoresde`` and ``torchrun -m scoresde`` start.

The current folder is taken from the path before anything else is imported, see ``scoresde.cli.__main__``.
"""

import os
import sys

if not sys.flags.safe_path:
    folder = sys.path.pop(0)
    if os.path.join(folder, "scoresde", "__main__.py") == __file__:
        sys.path.append(folder)

from .cli.start import main

sys.exit(main())
