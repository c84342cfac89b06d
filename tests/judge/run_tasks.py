"""Judges the tasks on standard input as a caller of its own: `python run_tasks.py < request.json > answer.json`.

A script, so that another user's Python can run it with nothing but the standard library and the judge.
"""

import json
import sys
from pathlib import Path

from llama_code.judge.levels import refusal
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, Task

request = json.load(sys.stdin)
answer = {"refusal": refusal(request["level"])}
if answer["refusal"] is None:
    tasks = [Task(program, Assertions(tests)) for program, tests in request["tasks"]]
    verdicts = judge(tasks, request["timeout"], num_workers=2, level=request["level"])
    answer["verdicts"] = [verdict._asdict() for verdict in verdicts]
# not ru_maxrss, which begins with what the process was forked from
status = Path("/proc/self/status").read_text()
answer["max_rss_bytes"] = 1024 * int(status.split("VmHWM:")[1].split()[0])
json.dump(answer, sys.stdout)
