"""How soon Serve learns of a process that hangs: the same in serve.yaml, in the application and in the documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from preceptor_serve import app
from preceptor_serve.health import CHECKS, HANG_AFTER_S, PERIOD_S, TIMEOUT_S

REPOSITORY = Path(__file__).resolve().parents[2]
FAILED_CHECKS = 3


@pytest.mark.parametrize("name", ["Edge", "Scorer"])
def test_serve_yaml_checks_as_often_as_the_application(name: str):
    (application,) = yaml.safe_load((REPOSITORY / "serve" / "serve.yaml").read_text())["applications"]
    (deployment,) = [found for found in application["deployments"] if found["name"] == name]
    assert {key: deployment[key] for key in CHECKS} == CHECKS


def test_both_deployments_are_checked_so():
    scorers = app.build(app.AppArgs(bundle="b"))._bound_deployment.init_args[0]._bound_deployment
    for deployment in (app.EDGE, scorers):
        found = deployment._deployment_config
        assert (found.health_check_period_s, found.health_check_timeout_s) == (PERIOD_S, TIMEOUT_S)


def test_serve_counts_as_many_failed_checks_as_the_documents_say():
    from ray.serve._private.constants import REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD

    assert REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD == FAILED_CHECKS
    text = (REPOSITORY / "docs" / "serving.md").read_text()
    assert f"within {PERIOD_S + FAILED_CHECKS * TIMEOUT_S:g} s" in text
    assert f"over {HANG_AFTER_S:g} s" in text
