"""ppio-sandbox 1.1.3: the older line, which knows a domain and nothing else."""

from ppio_sandbox.core import Sandbox, SandboxState

sandbox = Sandbox.create(timeout=300)
made = [sandbox.sandbox_id]
try:
    assert "-" in sandbox.sandbox_id  # <id>-<client id>
    sandbox.files.write("state.txt", "before")
    command = sandbox.commands.run("sleep 600", background=True, timeout=0)
    sandbox.beta_pause()
    sandbox.beta_pause(sync=True)
    assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED
    assert sandbox.is_running() is False
    assert Sandbox._cls_resume(sandbox.sandbox_id, timeout=300) is True
    assert Sandbox._cls_resume(sandbox.sandbox_id, timeout=300) is False
    assert sandbox.files.read("state.txt") == "before"
    assert command.pid in {one.pid for one in sandbox.commands.list()}
    sandbox.beta_pause()
    assert Sandbox.connect(sandbox.sandbox_id, timeout=300).files.read("state.txt") == "before"

    clones = Sandbox.clone(sandbox.sandbox_id, count=2, strict=True, timeout=120)
    made += [one.sandbox_id for one in clones]
    assert (len(clones), clones.count) == (2, 2)
    assert [one.files.read("state.txt") for one in clones] == ["before"] * 2

    assert sandbox.reset() is True
    assert sandbox.files.read("state.txt") == "before"
    assert command.pid not in {one.pid for one in sandbox.commands.list()}

    committed = sandbox.commit(alias="committed-by-one")
    copy = Sandbox.create(committed.template_id, timeout=120)
    made.append(copy.sandbox_id)
    assert copy.files.read("state.txt") == "before"

    names = {event.event_name for event in Sandbox.get_events(limit=100).items}
    assert {"create", "pause", "resume"} <= names, names
    paused = Sandbox.create(timeout=300, auto_pause=True)
    made.append(paused.sandbox_id)
    paused.beta_pause()
    assert Sandbox.get_info(paused.sandbox_id).state == SandboxState.PAUSED
finally:
    for sandbox_id in made:
        Sandbox.kill(sandbox_id)
