#!/bin/sh
# launch.sh LANGUAGE CONNECTION_FILE: starts the kernel with its standard output and error on two pipes
# that it reads itself, so that what child processes print is output of the cell as well.
set -eu
pipes=$(mktemp -d)
mkfifo -m 600 "$pipes/stdout" "$pipes/stderr"
# The loader of modules.mjs is experimental by name in this Node.js, and says so once a session.
exec node --disable-warning=ExperimentalWarning /opt/code-interpreter/javascript/main.mjs "$1" "$2" "$pipes" \
    </dev/null 3>&2 1<>"$pipes/stdout" 2<>"$pipes/stderr"
