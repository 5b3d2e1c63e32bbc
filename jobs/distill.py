"""Distillation and all that follows it, from stored teacher scores: ``python jobs/distill.py RECIPE --root DIR``.

A new mix of the teachers is a new --version of this job alone, with the old one as its --base: the teachers and their
scores stay as they are.
"""

from __future__ import annotations

import sys

from preceptor.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--from", "distill"]))
