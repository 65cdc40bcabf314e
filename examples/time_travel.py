import time

from e2b import Sandbox

COUNT = "n=0; while sleep 0.1; do n=$((n + 1)); echo $n >count; done"

with Sandbox.create() as sandbox:
    sandbox.commands.run(COUNT, background=True)
    time.sleep(1)

    sandbox.pause()  # its processes are on disk now and cost nothing else
    sandbox.connect()  # the loop goes on from the number it had
    print("after the pause:", sandbox.files.read("count").strip())

    for twin in sandbox.fork(count=2):  # two more that count on from here
        with twin:
            print("a twin:", twin.files.read("count").strip())

    snapshot = sandbox.create_snapshot()  # kept until it is deleted
    with Sandbox.create(snapshot.snapshot_id) as later:
        print("from the snapshot:", later.files.read("count").strip())
    Sandbox.delete_snapshot(snapshot.snapshot_id)
