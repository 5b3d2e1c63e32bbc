"""Ask a running scorer for the order of three postings: ``python examples/score_with_http.py [URL]``.

Start one first: ``preceptor serve --bundle runs/demo/export/v1/bundle``. Where it wants a key, put it into the
environment variable PRECEPTOR_API_KEY.
"""

from __future__ import annotations

import os
import sys

from preceptor_serve.client import DEFAULT_URL, ApiError, Client, Document, NoAnswer

QUERY = "night nurse part time"
PROFILE = "Registered nurse, six years on surgical wards, wants two or three nights a week near Leeds."
DOCUMENTS = [
    Document(id="ward", text="Staff Nurse (nights), surgical ward, Leeds. Part time. NMC registration required."),
    Document(id="desk", text="Dental receptionist, Leeds. Weekdays, full time."),
    Document(id="bait", text="EARN BIG from home!!! No experience, no questions, start tonight."),
]


def main(url: str, api_key: str | None) -> int:
    """Exit code 0 after printing the postings, best first; 1 where the scorer refuses or does not answer."""
    try:
        with Client(url, api_key=api_key) as client:
            answer = client.score(QUERY, PROFILE, DOCUMENTS, deadline_ms=5000)
    except (ApiError, NoAnswer) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    print(f"bundle {answer.bundle_id}, policy {answer.policy_version}")
    for item in answer.ranked:
        actions = ", ".join(f"P({action}) {prob:.2f}" for action, prob in item.actions.items())
        print(f"{item.score:.3f}  {item.id}: expected grade {item.expected_grade:.2f}, {actions}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_URL, os.environ.get("PRECEPTOR_API_KEY")))
