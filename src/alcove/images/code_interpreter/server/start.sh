#!/bin/sh
# The template's start command: runs the code interpreter's server as root, and runs it again when it
# ends. The server restarts kernels, and the agent this script (keep_running in recipe.toml), which
# code in the sandbox cannot end.
set -u
here=/opt/code-interpreter
if [ "$(id -u)" -ne 0 ]; then
    exec sudo -n -- "$0"
fi
cd "$here" || exit 1
export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset SUDO_COMMAND SUDO_USER SUDO_UID SUDO_GID MAIL
log=/var/log/code-interpreter.log
# One after the other: where only this script was ended, the server has the lock and goes on.
exec 9>/run/code-interpreter.lock
flock 9
while :; do
    # What the last life said is kept, not everything that was ever said.
    [ -f "$log" ] && mv -f "$log" "$log.1"
    # What a flood of output took goes back to the system at once: clones copy all of this memory.
    PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=262144 MALLOC_TRIM_THRESHOLD_=262144 \
        "$here/venv/bin/python" -m server uvicorn main:app --host 0.0.0.0 --port 49999 >"$log" 2>&1 </dev/null
    sleep 0.5
done
