"""LLaMA-style language models for Python, and a controlled scaling study of them.

This module imports nothing: the judge and the data workers start without torch.
"""
