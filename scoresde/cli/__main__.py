"""``python -m scoresde.cli``, as ``scoresde``.

Python puts the current folder first on the path, where a file named like a library would run in its place. The folder
is taken from there before anything else is imported; if the library itself lies in it, it goes to the end.
"""

import os
import sys

if not sys.flags.safe_path:
    folder = sys.path.pop(0)
    if os.path.join(folder, "scoresde", "cli", "__main__.py") == __file__:
        sys.path.append(folder)

from .start import main

sys.exit(main())
