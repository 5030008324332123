#!/bin/sh
# Runs a command where network namespaces may be made: as root directly, else as root of an own user namespace.
#
# It never runs the command without that right: the lab's tests do not pass by being skipped.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

if [ "$(id -u)" -eq 0 ]; then
    exec "$@"
fi
if ! unshare --user --map-root-user --net --mount true 2>/dev/null; then
    echo "lab: this user may not make namespaces. Run as root, or allow it:" >&2
    echo "lab:   sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000" >&2
    exit 1
fi
# `ip netns` keeps its names under /run, which belongs to the host's root: give it one of our own.
# shellcheck disable=SC2016 # expands inside the new namespace
exec unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' in-lab "$@"
