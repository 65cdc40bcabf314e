"""Python programs that run on in a clone must not draw the numbers that their twin draws.

The agent sends SIGURG, which everybody ignores by default, to all processes of a clone. A few lines
in the image's sitecustomize.py, which every Python reads when it starts, seed the generators anew.
"""

MARK = "# alcove: draw new numbers when this sandbox is a clone (SIGURG)\n"

HOOK = f"""\
{MARK}\
def _alcove():
    import _signal
    import sys

    def reseed(*_):
        for name in ("random", "numpy.random", "torch"):
            seed = getattr(sys.modules.get(name), "seed", None)
            if seed is not None:
                try:
                    seed()
                except Exception:
                    pass

    try:
        if _signal.getsignal(_signal.SIGURG) == _signal.SIG_DFL:
            _signal.signal(_signal.SIGURG, reseed)
            _signal.siginterrupt(_signal.SIGURG, False)
    except (ValueError, OSError):
        pass


_alcove()
del _alcove
"""
