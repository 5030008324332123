#!/bin/sh
# Runs a command where network namespaces may be made: as root directly, else as root of an own user namespace.
#
# It never runs the command without that right: the lab's tests do not pass by being skipped.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

if [ "$(id -u)" -eq 0 ]; then
    exec "$@"
fi
# Programs that give up root (a database, a capture) need more users than one: take the range that the system has
# set aside for this user, where there is one.
users=--map-root-user
if unshare --user --map-root-user --map-auto true 2>/dev/null; then
    users='--map-root-user --map-auto'
elif ! unshare --user --map-root-user --net --mount true 2>/dev/null; then
    echo "lab: this user may not make namespaces. Run as root, or allow it:" >&2
    echo "lab:   sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000" >&2
    exit 1
else
    echo "lab: no range of users in /etc/subuid (or no newuidmap): tests of programs that give up root will fail" >&2
fi
# `ip netns` keeps its names under /run, which belongs to the host's root: give it one of our own.
# shellcheck disable=SC2016,SC2086 # expands inside the new namespace; options are split on purpose
exec unshare --user $users --net --mount sh -c 'mount -t tmpfs tmpfs /run && exec "$@"' in-lab "$@"
