"""The SDK's shorthands for steps: packages of Debian, PyPI and npm, git, files and links."""

import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from e2b import Sandbox, Template

from contract.test_templates import build
from stack import Stack

pytestmark = [pytest.mark.sdk, pytest.mark.usefixtures("stack"), pytest.mark.timeout(300)]

# Git talks to a server of its own beside it, by the protocol it would use over a network.
SERVER = """\
set -e
git init --quiet --bare --initial-branch main /srv/git/project.git
git clone --quiet /srv/git/project.git /tmp/made && cd /tmp/made
git config user.email a@b.c && git config user.name a
for text in first second; do echo $text >file; git add file; git commit --quiet -m $text; done
git push --quiet origin HEAD:main HEAD:other && cd / && rm -r /tmp/made
printf '#!/bin/sh\\nexec git daemon --inetd --export-all --base-path=/srv/git\\n' >/srv/git/serve
chmod +x /srv/git/serve
git config --system core.gitProxy /srv/git/serve
git config --system --add safe.directory '*'
mkdir -p /opt/moved && touch /opt/moved/old-name /opt/gone
: {name}
"""


@pytest.fixture
def name(stack: Stack) -> Iterator[str]:
    name = f"short-{uuid.uuid4().hex[:10]}"
    yield name
    delete = [sys.executable, "-m", "alcove.cli.main", "template", "delete", name]
    subprocess.run([*delete, "--data-dir", str(stack.data_dir)], check=True, timeout=60)


def test_packages_repositories_and_files(name: str) -> None:
    template = (
        Template()
        .from_template("base")
        .run_cmd(SERVER.format(name=name), user="root")
        .git_clone("git://project.test/project.git", "/home/user/cloned", branch="other", depth=1)
        .rename("/opt/moved/old-name", "/opt/moved/new-name", user="root")
        .remove("/opt/gone", user="root")
        .make_dir("/opt/made", mode=0o750, user="root")
        .make_symlink("/opt/moved/new-name", "/home/user/link")
        .apt_install("cowsay")
        .pip_install(["six==1.17.0"])
        .npm_install("bun@1.2.20", g=True)
        .set_workdir("/home/user/project")
        .bun_install(["is-odd@3.0.1"])
    )
    build(template, name)
    with Sandbox.create(name, timeout=60) as sandbox:

        def shell(command: str) -> str:
            return sandbox.commands.run(command, cwd="/home/user").stdout

        assert shell("cat cloned/file; git -C cloned log --oneline | wc -l") == "second\n1\n"
        assert shell("readlink link; ls /opt; ls /opt/moved") == (
            "/opt/moved/new-name\nmade\nmoved\nnew-name\n"
        )
        assert shell("stat -c '%U %a' /opt/made") == "root 750\n"
        assert "moo" in shell("/usr/games/cowsay moo")
        assert shell("python3 -c 'import six; print(six.__version__)'") == "1.17.0\n"
        odd = "cd project && node -e \"console.log(require('is-odd')(3))\""
        assert shell(odd) == "true\n"
