"""Prompts that improve against golden's calibration split, and the disagreements that no prompt mends, sorted."""

from preceptor.refine.stage import refine
from preceptor.refine.worklist import Cause, Task, worklist

__all__ = ["Cause", "Task", "refine", "worklist"]
