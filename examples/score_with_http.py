"""Ask a running scorer for the order of three postings: ``python examples/score_with_http.py [URL]``.

Start one first: ``preceptor serve --bundle runs/demo/export/v1/bundle``.
"""

from __future__ import annotations

import sys

import httpx

REQUEST = {
    "query": "night nurse part time",
    "profile": "Registered nurse, six years on surgical wards, wants two or three nights a week near Leeds.",
    "documents": [
        {"id": "ward", "text": "Staff Nurse (nights), surgical ward, Leeds. Part time. NMC registration required."},
        {"id": "desk", "text": "Dental receptionist, Leeds. Weekdays, full time."},
        {"id": "bait", "text": "EARN BIG from home!!! No experience, no questions, start tonight."},
    ],
}


def main(url: str) -> int:
    """Exit code 0 after printing the postings, best first; 1 where the scorer refuses or does not answer."""
    try:
        answer = httpx.post(f"{url}/v1/score", json=REQUEST, timeout=30.0)
    except httpx.TransportError as error:
        print(f"{url}: no answer ({error}). Start a scorer with: preceptor serve --bundle DIR", file=sys.stderr)
        return 1
    body = answer.json()
    if answer.is_error:
        print(f"{answer.status_code} {body['error']['code']}: {body['error']['message']}", file=sys.stderr)
        return 1
    print(f"bundle {body['bundle_id']}, policy {body['policy_version']}")
    for item in sorted(body["results"], key=lambda item: -item["score"]):
        actions = ", ".join(f"P({action}) {prob:.2f}" for action, prob in item["actions"].items())
        print(f"{item['score']:.3f}  {item['id']}: expected grade {item['expected_grade']:.2f}, {actions}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"))
