"""``python -m preceptor`` is the command `preceptor`."""

import sys

from preceptor.cli import main

sys.exit(main())
