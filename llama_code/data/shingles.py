"""A document as the set of its runs of words: what near-duplicates and benchmarks' text are recognized by.

Words are runs of letters, digits and underscores, as in the near-deduplication of BigCode (Allal et al. 2023, section
4.2); case counts, space and punctuation do not.
"""

import re
import zlib

import numpy as np

WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)


def word_hashes(text: str) -> np.ndarray:
    """Return a 32-bit hash (CRC-32) of each word in order: `(num_words,)`, uint64."""
    words = WORD.findall(text)
    return np.fromiter(map(zlib.crc32, map(_encode, words)), np.uint64, len(words))


def _encode(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")


def run_hashes(words: np.ndarray, length: int) -> np.ndarray:
    """Return a hash of each run of `length` words in order: `(max(0, num_words - length + 1),)`, uint64.

    A polynomial of the words' hashes modulo 2**64, its bits mixed as in SplitMix64 (Steele et al. 2014).
    """
    num_runs = max(0, len(words) - length + 1)
    hashes = np.zeros(num_runs, np.uint64)
    for i in range(length):
        hashes *= _MULTIPLIER
        hashes += words[i : i + num_runs]
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MIXER
    hashes ^= hashes >> np.uint64(31)
    return hashes
