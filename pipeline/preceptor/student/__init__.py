"""The student: one small ranker that learns from the stored scores of all teachers."""
