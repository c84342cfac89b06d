"""The byte-level BPE tokenizer that all sizes share: its training, its pre-tokenization and the trained files.

This module imports nothing. `AutoTokenizer.from_pretrained` loads the trained files from this folder.
"""
