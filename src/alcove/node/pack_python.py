"""Packs Python source trees into one zip of sourceless, unchecked bytecode; same input, same bytes.

Run by the interpreter that will load the zip (bytecode belongs to one Python version), which need
not be the one the node runs on; so: standard library only, and nothing of ours is imported.

    python3 -I pack_python.py OUTPUT.zip < [["name in the zip.py", "/path/of/source.py"], ...]
"""

import importlib.util
import json
import marshal
import struct
import sys
import zipfile
from pathlib import Path

# Bytecode header flags: hash-based and never checked against a source (PEP 552).
_UNCHECKED_HASH = 0b01
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)
# Docstrings and asserts would only take up memory in every sandbox.
_OPTIMIZE = 2


def pack(output: Path, sources: list[tuple[str, str]]) -> None:
    # Stored, not deflated: the agent maps it from the page cache and must not need zlib to start.
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, path in sorted(sources):
            entry = zipfile.ZipInfo(name.removesuffix(".py") + ".pyc", _FIXED_DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, _bytecode(name, Path(path).read_bytes()))


def _bytecode(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True, optimize=_OPTIMIZE)
    header = importlib.util.MAGIC_NUMBER + struct.pack("<I", _UNCHECKED_HASH)
    return header + importlib.util.source_hash(source) + marshal.dumps(code)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), json.load(sys.stdin))
