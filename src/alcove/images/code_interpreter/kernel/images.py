"""Pictures of Pillow show themselves: `image.show()`, and `image.save("path")` as well.

The last is what clients of E2B rely on: code that only writes a file gives its picture back.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from .imports import when_imported

# A loop that writes ten thousand thumbnails is not meant for the reader of the results.
SAVES_SHOWN_PER_CELL = 20


def register(shell: Any) -> None:
    saved = _Saved()
    shell.events.register("pre_run_cell", saved.begin)
    when_imported("PIL.Image", lambda module: _show_saved(module, saved.show))
    when_imported("PIL.ImageShow", _show_in_results)


class _Saved:
    """How many pictures this cell has shown because it saved them."""

    def __init__(self) -> None:
        self._shown = 0

    def begin(self, *_: object) -> None:
        self._shown = 0

    def show(self, image: Any) -> None:
        self._shown += 1
        if self._shown > SAVES_SHOWN_PER_CELL:
            return
        try:
            _display(image)
        except Exception:
            # The file is what the code asked for.
            return


def _show_saved(module: ModuleType, show: Callable[[Any], None]) -> None:
    original = module.Image.save

    def save(self: Any, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002 (Pillow's name)
        original(self, fp, format, **params)
        if isinstance(fp, str):
            show(self)

    save.__doc__ = original.__doc__
    module.Image.save = save


def _show_in_results(module: ModuleType) -> None:
    class Results(module.Viewer):  # type: ignore[misc, name-defined]  # Pillow is not loaded yet
        """First of all viewers: a sandbox has no screen for the others."""

        def show(self, image: Any, **_: Any) -> int:
            _display(image)
            return 1

    module.register(Results, order=0)


def _display(image: Any) -> None:
    from IPython.display import display

    display(image)
