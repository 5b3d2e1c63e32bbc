"""Judges: measuring devices that grade pairs, their calibration against golden, and the labels they give."""

from preceptor.judge.calibrate import calibrate
from preceptor.judge.fake import FakeJudge
from preceptor.judge.host import HostConfig, host, stored_judge
from preceptor.judge.hosted import HostedJudge
from preceptor.judge.label import label
from preceptor.judge.replies import Answers, Judge, Reply

__all__ = [
    "Answers",
    "FakeJudge",
    "HostConfig",
    "HostedJudge",
    "Judge",
    "Reply",
    "calibrate",
    "host",
    "label",
    "stored_judge",
]
