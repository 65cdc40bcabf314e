"""ppio-sandbox 2.1.0 in its legacy dialect: only PPIO_API_URL is set, the domain is its default.

Clones are looked at through connect: the client builds their host from its own domain.
"""

from ppio_sandbox.core import Sandbox, SandboxState

sandbox = Sandbox.create(timeout=300)
made = [sandbox.sandbox_id]
try:
    assert "-" in sandbox.sandbox_id  # <id>-<client id>
    sandbox.files.write("state.txt", "before")
    sandbox.pause()
    sandbox.pause()
    assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED
    sandbox.connect(timeout=300)
    assert sandbox.files.read("state.txt") == "before"
    sandbox.beta_pause(sync=True)
    assert sandbox.is_running() is False
    sandbox.connect(timeout=300)
    assert sandbox.reset() is True
    assert sandbox.files.read("state.txt") == "before"

    clones = Sandbox.clone(sandbox.sandbox_id, count=2, strict=True, timeout=120)
    made += [one.sandbox_id for one in clones]
    assert len(clones) == 2
    for one in clones:
        assert Sandbox.connect(one.sandbox_id).files.read("state.txt") == "before"

    committed = sandbox.commit(alias="committed-by-ppio")
    assert committed.template_id
    sandbox.files.write("state.txt", "after")
    copy = Sandbox.create(committed.template_id, timeout=120)
    made.append(copy.sandbox_id)
    assert copy.files.read("state.txt") == "before"
    by_name = Sandbox.create("committed-by-ppio", timeout=120)
    made.append(by_name.sandbox_id)
    assert by_name.files.read("state.txt") == "before"
finally:
    for sandbox_id in made:
        Sandbox.kill(sandbox_id)
