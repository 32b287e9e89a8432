"""``python -m fedrebasin`` is the ``fedrebasin`` command."""

import sys

from fedrebasin.cli import main

sys.exit(main())
