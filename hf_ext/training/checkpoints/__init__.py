"""Checkpoints that are complete or not there, and resumes that are exact or refused."""
