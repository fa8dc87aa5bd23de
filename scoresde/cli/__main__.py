"""``python -m scoresde.cli``, as ``scoresde``."""

import sys

from . import main

sys.exit(main())
