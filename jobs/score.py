"""Any pairs through a finished bundle: ``python jobs/score.py --bundle DIR --pairs FILE --out FILE``."""

from __future__ import annotations

import sys

from preceptor.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
