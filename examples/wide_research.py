"""Wide research: one agent plans, each part is worked on in a sandbox of its own, one merges.

Every worker has the same tools and a context that nobody else sees: it begins with its own task and
ends with its own report. The model is a stand-in that needs no network; put yours in its place.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from e2b import Sandbox

WORKERS = int(os.environ.get("WORKERS", "8"))
QUESTION = "How many primes are there below 40000?"
TOOL = """
import sys
first, last = int(sys.argv[1]), int(sys.argv[2])
print(sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(first, last)))
"""
Message = dict[str, str]


def model(context: list[Message]) -> Message:
    """What a language model would answer: a plan, a command to run, or a report."""
    last = context[-1]
    match last["role"]:
        case "question":
            part = 40000 // WORKERS
            ends = [*range(0, part * WORKERS, part), 40000]
            tasks = [f"{first} {last}" for first, last in pairwise(ends)]
            return {"role": "plan", "text": json.dumps(tasks)}
        case "task":
            return {"role": "command", "text": f"python3 count.py {last['text']}"}
        case _:
            return {"role": "report", "text": last["text"].strip()}


def work(sandbox: Sandbox, task: str) -> list[Message]:
    """One worker, from its task to its report; its context is kept in its own sandbox."""
    context = [{"role": "task", "text": task}]
    with sandbox:
        while context[-1]["role"] != "report":
            context.append(model(context))
            if context[-1]["role"] == "command":
                output = sandbox.commands.run(context[-1]["text"], timeout=120).stdout
                context.append({"role": "output", "text": output})
            sandbox.files.write("context.json", json.dumps(context))
        return json.loads(sandbox.files.read("context.json"))


tasks = json.loads(model([{"role": "question", "text": QUESTION}])["text"])
with Sandbox.create(timeout=300) as base:
    base.files.write("count.py", TOOL)  # the tools, once for all of them
    forked = base.fork(count=len(tasks), timeout=300)
workers = [one for one in forked if isinstance(one, Sandbox)]
if len(workers) < len(tasks):
    raise SystemExit(f"only {len(workers)} of {len(tasks)} workers were started: {forked}")
with ThreadPoolExecutor(16) as pool:
    contexts = list(pool.map(work, workers, tasks))
print(QUESTION, sum(int(context[-1]["text"]) for context in contexts))
print("workers:", len(contexts))
print("tasks:", "; ".join(message["text"] for context in contexts for message in context[:1]))
