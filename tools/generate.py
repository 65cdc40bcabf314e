"""Write what is generated from the code: `generate.py` writes, `generate.py --check` compares.

spec/control.openapi.json    the API document of control
"""

import json
import sys
import tempfile
from pathlib import Path

from alcove.control.main import build_app
from alcove.control.nodes.fake import FakeNode
from alcove.control.settings import Settings

ROOT = Path(__file__).parent.parent


def control_openapi() -> str:
    with tempfile.TemporaryDirectory() as directory:
        app = build_app(Settings(data_dir=Path(directory)), node=FakeNode())
    return json.dumps(app.openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


GENERATED = {ROOT / "spec" / "control.openapi.json": control_openapi}


def main() -> int:
    check = "--check" in sys.argv[1:]
    drifted = []
    for path, generate in GENERATED.items():
        text = generate()
        if not path.exists() or path.read_text() != text:
            drifted.append(path.relative_to(ROOT))
            if not check:
                path.write_text(text)
    for path in drifted:
        print(f"{path}: {'differs from the code; run tools/generate.py' if check else 'written'}")
    return 1 if check and drifted else 0


if __name__ == "__main__":
    sys.exit(main())
