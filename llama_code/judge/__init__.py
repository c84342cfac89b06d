"""Runs untrusted programs and says whether they passed; knows nothing of models.

Only the standard library is imported here, so that judging starts without torch.
"""
