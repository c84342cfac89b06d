"""Time of nucleus sampling's cut on a CPU: transformers' sort of the vocabulary against our threshold.

Scores are normal: a standard deviation of 0.3 is a model before training (some 29,000 of 32,000 tokens are kept), 4 a
trained one.
"""

import time

import torch
from results import record
from transformers import TopPLogitsWarper

from llama_code.evaluation.sampling import TemperatureTopP

BATCH, REPEATS, TOP_P = 32, 20, 0.95


def milliseconds(processor, scores: torch.Tensor) -> float:
    """The fastest of several calls."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        processor(None, scores)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> None:
    for vocab_size in (32_000, 49_152):
        for deviation in (0.3, 4.0):
            scores = deviation * torch.randn(BATCH, vocab_size, generator=torch.Generator().manual_seed(0))
            arms = {"transformers": TopPLogitsWarper(TOP_P), "llama-code": TemperatureTopP(1.0, TOP_P)}
            for arm, processor in arms.items():
                size = f"{BATCH} rows x {vocab_size} tokens, deviation {deviation}"
                value = milliseconds(processor, scores)
                record("top_p", f"{arm}, {torch.get_num_threads()} threads", size, "time", value, "ms")
                print(f"{size:45} {arm:15} {value:8.2f} ms")


if __name__ == "__main__":
    main()
