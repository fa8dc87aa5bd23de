"""``python -m scoresde.cli``, as ``scoresde``."""

import sys

from .parser import main

sys.exit(main())
