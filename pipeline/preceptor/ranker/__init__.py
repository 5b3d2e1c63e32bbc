"""The ranker: one model class for teachers and student, its text, batches, losses and the one training loop."""
