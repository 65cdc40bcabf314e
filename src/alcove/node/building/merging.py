"""From the layers of an image to its root: links to their files, and what they take away.

A layer says with the names of files what it takes away of those below (image-spec, layer.md):

    .wh.NAME          the file or directory NAME beside it
    .wh..wh..opq      all that the directory holds
    .wh..wh.*         of no meaning to others than aufs

Layers are hostile input. Every directory that is entered was made one before, so no link of a lower
layer leads out of the root.
"""

import os

from alcove.node import trees

_WHITEOUT, _OPAQUE, _AUFS = ".wh.", ".wh..wh..opq", ".wh..wh."
_NO_NAMES = {"", ".", ".."}


def merge(layer: str, root: str) -> None:
    """Do to a root what a layer says. Directories are the root's own, all else is linked."""
    waiting, entered = [""], list[str]()
    while waiting:
        directory = waiting.pop()
        source, target = os.path.join(layer, directory), os.path.join(root, directory)
        if not trees.is_directory(target):
            trees.clear(target)
            os.mkdir(target, 0o700)
        entered.append(directory)
        with os.scandir(source) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        _take_away([name for name, _ in entries], target)
        for name, is_directory in entries:
            if name.startswith(_WHITEOUT):
                continue
            if is_directory:
                waiting.append(os.path.join(directory, name))
                continue
            trees.clear(os.path.join(target, name))
            os.link(os.path.join(source, name), os.path.join(target, name), follow_symlinks=False)
    for directory in reversed(entered):
        trees.like(os.path.join(layer, directory), os.path.join(root, directory))


def _take_away(names: list[str], target: str) -> None:
    if _OPAQUE in names:
        for name in os.listdir(target):
            trees.clear(os.path.join(target, name))
    for name in names:
        gone = name.removeprefix(_WHITEOUT)
        if gone != name and not name.startswith(_AUFS) and gone not in _NO_NAMES:
            trees.clear(os.path.join(target, gone))
