#!/bin/sh
# The first process of the container: emberbox "$@".
#
# On cgroup v2 a group with processes cannot hand its controllers on to groups below it, and machines need groups of
# their own. So where this container may write its cgroups (docker run --privileged), its processes move one level down
# first. Elsewhere nothing is changed, and Emberbox looks after the memory of machines itself (`emberbox doctor` says so).
set -eu

root=/sys/fs/cgroup
if [ -w "$root/cgroup.subtree_control" ] && [ "$(cat /proc/self/cgroup)" = "0::/" ]; then
    if mkdir -p "$root/server" 2>/dev/null; then
        for pid in $(cat "$root/cgroup.procs"); do
            echo "$pid" >"$root/server/cgroup.procs" 2>/dev/null || true
        done
    fi
fi
exec /opt/emberbox/venv/bin/emberbox "$@"
