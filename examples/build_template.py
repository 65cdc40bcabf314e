"""A template of your own: built in steps, tagged, used, and taken back to its first version.

The service that it starts answers at once in every sandbox: it is in the snapshot.
"""

import os
from pathlib import Path

from e2b import Sandbox, Template, default_build_logger, wait_for_port

NAME = os.environ.get("TEMPLATE", "notes")
HERE = Path(__file__).parent


def template(greeting: str) -> Template:
    return (
        Template(file_context_path=HERE)
        .from_base_image()
        .copy("first.py", "app/")
        .set_workdir("/home/user/app")
        .run_cmd(f"echo '{greeting}' >index.html")
        .set_envs({"STAGE": "example"})
        .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
    )


for tag, greeting in (("v1", "hello"), ("v2", "hello again")):
    Template.build(
        template(greeting),
        f"{NAME}:{tag}",
        tags=["live"],
        cpu_count=1,
        memory_mb=512,
        on_build_logs=default_build_logger(min_level="warn"),
    )
for _ in range(2):
    with Sandbox.create(f"{NAME}:live", timeout=60) as sandbox:
        print(sandbox.commands.run("curl -s localhost:8000; echo $STAGE; ls").stdout, end="")
    Template.assign_tags(f"{NAME}:v1", "live")
