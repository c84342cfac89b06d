"""What the tests of training share."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A recipe folder for a model with 300 tokens and rows of 64."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    fields = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16)
    fields |= dict(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    base = json.loads((ROOT / "recipes" / "m1" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**base, **fields}))
    (folder / "train.yaml").write_text(
        "learning_rate: 1.0e-2\nbatch_tokens: 256\npaper_batch_rows: 1\nmicro_batch_rows: 2\n"
    )
    return folder
