"""From what was served and what members did with it to impressions to train on, and to pairs worth labelling."""

from preceptor.feedback.pick import PickConfig, pick
from preceptor.feedback.stage import FeedbackConfig, feedback

__all__ = ["FeedbackConfig", "PickConfig", "feedback", "pick"]
