"""What is done once in an image of a registry, so that sandboxes can be made of it.

The user, the directories and the small programs that clients of E2B rely on (contract e2b 9.5).
"""

from alcove.node.egress import GATEWAY_ADDRESS

USER, WORKDIR = "user", "/home/user"

SCRIPT = f"""\
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
rm -f /etc/resolv.conf
echo 'nameserver {GATEWAY_ADDRESS}' >/etc/resolv.conf
[ -s /etc/hosts ] || printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost\\n' >/etc/hosts
chmod 1777 /tmp
if command -v apt-get >/dev/null; then
    missing=
    for pair in curl:curl ip:iproute2 pgrep:procps sudo:sudo; do
        command -v "${{pair%%:*}}" >/dev/null || missing="$missing ${{pair#*:}}"
    done
    if [ -n "$missing" ]; then
        export DEBIAN_FRONTEND=noninteractive
        if timeout 300 sh -c "apt-get -qq update && apt-get -qq install -y \\
            --no-install-recommends ca-certificates $missing" >/tmp/.provision 2>&1; then
            echo "installed$missing"
        else
            echo "could not install$missing: $(tail -n 1 /tmp/.provision)" >&2
        fi
        rm -f /tmp/.provision
        rm -rf /var/lib/apt/lists/*
    fi
fi
if ! grep -q '^{USER}:' /etc/passwd; then
    if command -v useradd >/dev/null; then
        useradd --create-home --shell /bin/bash {USER}
    else
        uid=1000
        while cut -d: -f3 /etc/passwd /etc/group | grep -qx "$uid"; do uid=$((uid + 1)); done
        echo "{USER}:x:$uid:$uid::{WORKDIR}:/bin/bash" >>/etc/passwd
        echo "{USER}:x:$uid:" >>/etc/group
        mkdir -p {WORKDIR}
        [ ! -d /etc/skel ] || cp -R /etc/skel/. {WORKDIR}/
        chown -R "$uid:$uid" {WORKDIR}
    fi
fi
mkdir -p /etc/sudoers.d /code /usr/local
echo '{USER} ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/{USER}
chmod 0440 /etc/sudoers.d/{USER}
chown {USER}: /code
chmod 777 /usr/local
"""
