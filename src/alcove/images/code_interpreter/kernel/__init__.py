"""What a Python kernel of the code interpreter has beyond a plain IPython: rich results.

An IPython extension, loaded by config/ipython_kernel_config.py. It adds the chart and data formats,
JSON of lists and dicts, and images that show themselves, bounds what is held of a flood of output,
and sends output without detours. It runs in the user's own interpreter, so it imports nothing the
user has not imported, and a failure of its own never becomes an error of the user's code. Imports
are relative: the folder is installed under a name of the template's choice.
"""

from typing import Any


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython once, with its InteractiveShell, before the first cell."""
    from . import formatters, images, output, sending

    for register in (formatters.register, images.register, output.register, sending.register):
        try:
            register(shell)
        except Exception as error:
            # A kernel without charts is better than none.
            shell.log.warning("alcove: %s is not available: %s", register.__module__, error)
