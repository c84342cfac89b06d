import importlib.util
import sys
from pathlib import Path

import pytest
from eval_tiny import CODE_PATTERN, CORPUS, tiny_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llama_code.evaluation.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CODE_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|pad|>", "<|file_sep|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|file_sep|>"],
    )


@pytest.fixture(scope="session")
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary(tokenizer)


@pytest.fixture(scope="session")
def model(vocabulary: Vocabulary) -> LlamaForCausalLM:
    return tiny_model(len(vocabulary.token_bytes), max_position_embeddings=1024)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, model, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run eval_code.py's main in this process, in a temporary folder."""
    spec = importlib.util.spec_from_file_location("eval_code", Path(__file__).parents[2] / "eval_code.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["eval_code.py", *map(str, arguments)])
        script.main()

    return main
