"""The workbench: a local page where the policy's owner and an engineer decide about disagreements and measure again."""

from preceptor.workbench.app import make_workbench
from preceptor.workbench.recalibration import Asked, Recalibrate, recalibration_of
from preceptor.workbench.session import Session

__all__ = ["Asked", "Recalibrate", "Session", "make_workbench", "recalibration_of"]
