"""Scores of a model: what it is asked, how it is sampled, and what the samples are worth."""
