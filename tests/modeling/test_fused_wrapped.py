"""Fused kernels under what wraps or replaces a model's modules: adapters, hooks, other layers, FSDP2."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.modeling.test_fused import DEVICE, ROOT, TOLERANCE, assert_same_step, gradients, models
from tests.modeling.test_llama_equivalence import SHAPE

pytest.importorskip("triton")


class QuantizedLinear(nn.Module):
    """A linear layer without a `weight`, as some quantizations make them."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.qweight = nn.Parameter(linear.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.qweight)


def test_modules_of_another_kind_are_called() -> None:
    reference, fused = models("untied")
    for model in (reference, fused):
        layer = model.model.layers[0]
        layer.mlp.up_proj, layer.input_layernorm = QuantizedLinear(layer.mlp.up_proj), nn.Identity()
        model.lm_head = QuantizedLinear(model.lm_head)
    assert_same_step(reference, fused)


def test_lora() -> None:
    """Adapters on packed projections and the head: their own forward runs, and the base gets no gradient."""
    targets = ["q_proj", "v_proj", "up_proj", "down_proj", "lm_head"]
    trained = ["input_layernorm"]
    config = LoraConfig(target_modules=targets, modules_to_save=trained, r=4, init_lora_weights=False)
    reference, fused = models("untied")
    torch.manual_seed(1)
    reference = get_peft_model(reference, config)
    fused = get_peft_model(fused, config)
    fused.load_state_dict(reference.state_dict())
    assert_same_step(reference, fused)
    assert all("lora_" in name or trained[0] in name for name in gradients(fused))
    assert sum(trained[0] in name for name in gradients(fused)) == SHAPE["num_hidden_layers"]


def test_hooks_are_called() -> None:
    """Those of a projection, of a norm and of the head, which a packed product would pass over."""
    reference, fused = models()
    seen: list[torch.Size] = []
    for model in (reference, fused):
        key = model.model.layers[0].self_attn.k_proj
        key.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        up, gate = model.model.layers[1].mlp.up_proj, model.model.layers[2].mlp.gate_proj
        up.register_full_backward_pre_hook(lambda module, gradients: seen.append(gradients[0].shape))
        norms = model.model.layers[0].input_layernorm, model.model.layers[1].post_attention_layernorm
        for norm in norms:
            norm.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        gate.forward = lambda x, gate=gate: seen.append(x.shape) or nn.functional.linear(x, gate.weight)
    assert_same_step(reference, fused)
    assert len(seen) == 12 and seen[:5] == seen[5:10]  # forward passes of both, then their backward passes


FSDP = """
import gc, json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM

def main(shape, output):
    config = LlamaCodeConfig(**shape, use_cache=False)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model, whole = LlamaCodeForCausalLM(config), LlamaCodeForCausalLM(config)
    whole.load_state_dict(model.state_dict())
    names = set(model.state_dict())
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert model.set_kernels("fused") == "fused"
    assert set(model.state_dict()) == names
    ids = torch.randint(2, shape["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(3))
    own = ids[dist.get_rank() :][:1]
    model(input_ids=own, labels=own).loss.backward()
    whole(input_ids=ids, labels=ids).loss.backward()
    worst = 0.0
    for (name, parameter), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor)
        worst = max(worst, (parameter.grad.full_tensor() - expected.grad).abs().max().item())
    (output / str(dist.get_rank())).write_text(str(worst))

dist.init_process_group("gloo")
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
gc.collect()  # what refers to the group keeps its threads, and one that outlives Python aborts the process
dist.destroy_process_group()
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="two processes share the CPU by gloo; a GPU has NCCL, and one rank")
def test_fsdp2_on_two_ranks(tmp_path: Path) -> None:
    """Sharded parameters keep their names, and their gradients are those of the whole model on the whole batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(2):
        environment = {**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", FSDP, json.dumps(SHAPE), str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert all(float((tmp_path / str(rank)).read_text()) < TOLERANCE for rank in range(2))
