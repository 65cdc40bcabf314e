"""Imports what most cells import; imported itself for nothing else.

Only in the kernel that waits in the template's snapshot: every sandbox then has these modules in
memory when its first cell asks for them. No name of the user's is bound. A missing module is no
error: a template of one's own may have fewer.
"""

import contextlib
import importlib

MODULES = ("numpy", "pandas", "matplotlib.pyplot")

for _name in MODULES:
    with contextlib.suppress(ImportError):
        importlib.import_module(_name)
