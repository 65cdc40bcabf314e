"""What decides about single sandboxes, and is asked to finish what a crash left."""

from typing import NamedTuple

from alcove.control.sandboxes.context import Context
from alcove.control.sandboxes.mounting import Mounting
from alcove.control.sandboxes.pauses import Pauses
from alcove.control.sandboxes.reach import Reach
from alcove.control.sandboxes.resumes import Resumes
from alcove.control.sandboxes.service import Sandboxes


class Deciders(NamedTuple):
    sandboxes: Sandboxes
    pauses: Pauses
    resumes: Resumes
    reach: Reach
    mounting: Mounting


def decide(context: Context) -> Deciders:
    sandboxes = Sandboxes(context)
    resumes = Resumes(context, sandboxes)
    return Deciders(sandboxes, Pauses(context), resumes, Reach(context), Mounting(context))
