"""The labelling stage alone: ``python jobs/label.py RECIPE --root DIR [options of preceptor run]``.

Its inputs are finished stages under the same root. A job that was killed is submitted again and resumes.
"""

from __future__ import annotations

import sys

from preceptor.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--only", "label"]))
