"""Evaluation: methods side by side on the same captions and noises, and the report of it."""
