"""UTF-8 bytes a token, speed and exactness of tokenizers on the standard library of the running Python.

    python benchmarks/tokenizer_bytes.py [TOKENIZER ...] [--train_baselines]

The standard library is held out from training everywhere in this project.
"""

import argparse
import itertools
import time
from pathlib import Path

from results import record
from tokenizers import Regex, Tokenizer, pre_tokenizers

from llama_code.data.corpus import training_texts
from llama_code.data.sources import standard_library
from llama_code.errors import UserError, run_script
from llama_code.tokenizer.pretokenization import LETTER, PATTERN, SPACE, SYMBOL
from llama_code.tokenizer.train import VOCAB_SIZE, train_tokenizer

OURS = Path(__file__).resolve().parents[1] / "tokenizer"
# Tables of characters and the language reference as one string: little of it is code.
NOT_CODE = ("encodings/", "pydoc_data/")
BASELINE_PATTERNS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+",
    # Our pieces, but the indent goes with the line's first word or symbols, so that no piece passes the end of a line.
    "indent with the first word": rf"{SPACE}*+{SYMBOL}?{LETTER}+|{SPACE}*+\p{{N}}{{1,3}}|"
    rf"{SPACE}*+{SYMBOL}+(?: {SYMBOL}+)*[\r\n]*|{SPACE}*+[\r\n]+|{SPACE}++",
    "ours": PATTERN,
}


def library_files() -> dict[str, str]:
    """Return the text of each file of the standard library that is UTF-8, by its path; tests are left out."""
    texts = {}
    for document in standard_library().documents():
        try:
            texts[document.path] = (document.content or b"").decode("utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def load(name: str) -> Tokenizer:
    """Load a tokenizer.json file, a folder or a Hub id.

    Raises:
        UserError: transformers has no fast tokenizer for it.
    """
    if Path(name).is_file():
        tokenizer = Tokenizer.from_file(name)
    else:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(name)
        if not loaded.is_fast:
            raise UserError(f"TOKENIZER {name!r} is not backed by tokenizers; give one that has a tokenizer.json")
        tokenizer = loaded.backend_tokenizer
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    return tokenizer


def measure(arm: str, tokenizer: Tokenizer, files: dict[str, str]) -> None:
    """Print one row and record its figures."""
    texts = list(files.values())
    sizes = [len(text.encode()) for text in texts]
    fastest = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        fastest = min(fastest, time.perf_counter() - started)
    ids = [encoding.ids for encoding in encodings]
    is_code = [not path.startswith(NOT_CODE) for path in files]
    code_bytes = sum(itertools.compress(sizes, is_code)) / sum(map(len, itertools.compress(ids, is_code)))
    all_bytes = sum(sizes) / sum(map(len, ids))
    decoded = tokenizer.decode_batch(ids, skip_special_tokens=False)
    exact = sum(map(str.__eq__, decoded, texts)) / len(texts)
    speed = sum(sizes) / fastest / 1e6
    print(f"{arm:<40} {code_bytes:>10.3f} {all_bytes:>10.3f} {speed:>8.1f} {exact:>8.1%}", flush=True)
    vocabulary = str(tokenizer.get_vocab_size())
    record("tokenizer_bytes", arm, vocabulary, "standard library without tables", code_bytes, "bytes/token")
    record("tokenizer_bytes", arm, vocabulary, "standard library", all_bytes, "bytes/token")
    record("tokenizer_bytes", arm, vocabulary, "encoding speed", speed, "MB/s")
    record("tokenizer_bytes", arm, vocabulary, "files decoded exactly", exact, "share")


def training_sample(spec: str, num_bytes: int) -> list[str]:
    """Every n-th training text, so that about `num_bytes` of UTF-8 come from all projects alike."""
    texts = list(training_texts(spec))
    step = max(1, round(sum(len(text.encode()) for text in texts) / num_bytes))
    return texts[::step]


def main() -> None:
    """Print and record bytes a token, speed and exactness of our tokenizer and of those that are named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tokenizers", nargs="*", metavar="TOKENIZER", help="tokenizer.json, folder or Hub id")
    parser.add_argument(
        "--train_baselines",
        action="store_true",
        help="train our size of vocabulary with other pre-tokenizers and with ours, all on the same sample",
    )
    parser.add_argument("--dataset", default="local-python", help="source of the sample (default: %(default)s)")
    parser.add_argument("--sample_bytes", type=int, default=60_000_000, help="of the sample (default: %(default)s)")
    arguments = parser.parse_args()
    files = library_files()
    num_bytes = sum(len(text.encode()) for text in files.values())
    print(f"standard library: {len(files)} files, {num_bytes / 1e6:.1f} MB; bytes a token without and with tables")
    print(f"{'tokenizer':<40} {'code':>10} {'all':>10} {'MB/s':>8} {'exact':>8}")
    measure("llama-code", load(str(OURS)), files)
    for name in arguments.tokenizers:
        measure(name, load(name), files)
    if arguments.train_baselines:
        sample = training_sample(arguments.dataset, arguments.sample_bytes)
        megabytes = sum(len(text.encode()) for text in sample) / 1e6
        for name, pattern in BASELINE_PATTERNS.items():
            splitter = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(pattern), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            trained = train_tokenizer(sample, VOCAB_SIZE, splitter)
            measure(f"{name}, trained on {megabytes:.0f} MB", trained, files)


if __name__ == "__main__":
    run_script(main)
