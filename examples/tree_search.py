"""Tree search: every position of a game is a snapshot, and any of them can be played on from.

The game lives in the memory of a program inside the sandbox: a number that starts at 1 and shall
become 15 by the moves below. The search (Monte Carlo, UCB1) goes where it has been promising.
"""

import math
from dataclasses import dataclass, field

from e2b import Sandbox

GOAL, MOST_MOVES, MOST_VISITS = 15, 4, 60
MOVES = ("+3", "*2", "-1", "*3")
GAME = """
import os
value = 1
os.mkfifo("moves")
while True:
    with open("moves") as moves:
        for move in moves:
            value = value + int(move) if move[0] in "+-" else value * int(move[1:])
    with open("value.new", "w") as file:
        file.write(str(value))
    os.rename("value.new", "value")
"""


@dataclass
class Position:
    snapshot_id: str
    moves: tuple[str, ...] = ()
    value: int = 1
    children: list["Position"] = field(default_factory=list)
    untried: list[str] = field(default_factory=lambda: list(MOVES))
    visits: int = 0
    reward: float = 0.0

    def best_child(self) -> "Position":
        def score(child: "Position") -> float:
            curious = math.sqrt(2 * math.log(self.visits) / child.visits)
            return child.reward / child.visits + curious

        return max(self.children, key=score)


def play(position: Position) -> Position:
    """Make a move that was not made from there before, in a sandbox of its own."""
    move = position.untried.pop(0)
    with Sandbox.create(position.snapshot_id, timeout=60) as sandbox:
        made = f"rm -f value; echo '{move}' >moves; until [ -s value ]; do sleep 0.01; done"
        value = int(sandbox.commands.run(f"{made}; cat value").stdout)
        child = Position(sandbox.create_snapshot().snapshot_id, (*position.moves, move), value)
    position.children.append(child)
    if len(child.moves) == MOST_MOVES:
        child.untried.clear()
    return child


def search(root: Position) -> Position | None:
    for _ in range(MOST_VISITS):
        path = [root]
        while not path[-1].untried and path[-1].children:
            path.append(path[-1].best_child())
        if path[-1].untried:
            path.append(play(path[-1]))
        for position in path:
            position.visits += 1
            position.reward += 1 / (1 + abs(GOAL - path[-1].value))
        if path[-1].value == GOAL:
            return path[-1]
    return None


def forget(position: Position) -> int:
    Sandbox.delete_snapshot(position.snapshot_id)
    return 1 + sum(forget(child) for child in position.children)


with Sandbox.create(timeout=60) as sandbox:
    sandbox.files.write("game.py", GAME)
    sandbox.commands.run("python3 game.py", background=True, timeout=0)
    sandbox.commands.run("until [ -p moves ]; do sleep 0.01; done")
    root = Position(sandbox.create_snapshot().snapshot_id)
try:
    found = search(root)
    print("found:", "none" if found is None else f"1 {' '.join(found.moves)} = {found.value}")
finally:
    print("positions:", forget(root))
