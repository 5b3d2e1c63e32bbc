"""Any recipe, whole or in part, as a Ray job: ``ray job submit ... -- python jobs/run.py RECIPE [options]``.

Takes what `preceptor run` takes. Inside a job RAY_ADDRESS is set, so the run joins the cluster it was submitted to.
"""

from __future__ import annotations

import sys

from preceptor.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
