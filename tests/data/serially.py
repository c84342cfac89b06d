"""A preparation by the tests' own process: the pools of `prepare` take seconds to start, and do the same stages."""

from pathlib import Path

from llama_code.data import stages
from llama_code.data.finish import finish
from llama_code.data.options import DataOptions
from llama_code.data.prepare import begin, make_plan
from llama_code.data.stages import Plan


def begun(options: DataOptions, tokenizer: Path) -> Plan:
    """Return the plan of a preparation whose stages can be done."""
    plan, _ = make_plan(options, tokenizer)
    begin(plan, tokenizer)
    return plan


def prepare_serially(options: DataOptions, tokenizer: Path) -> Path:
    """Do all stages, one task after the other, and return the folder that `prepare` would find."""
    plan = begun(options, tokenizer)
    for shard in range(plan.num_shards):
        stages.screen_task(plan, shard)
    stages.select_task(plan)
    for shard in range(plan.num_shards):
        stages.encode_task(plan, shard)
    finish(plan)
    return Path(plan.final)
