"""``python -m scoresde.cli``, as ``scoresde``."""

import sys

from .start import main

sys.exit(main())
