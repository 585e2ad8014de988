#!/bin/sh
# The first process of a node: a root of its own over the machine's, the node's binds, then its command.
# $1 node, $2 an empty folder, $3 a file that hears when the root is ready, then SOURCE DESTINATION MODE .. -- COMMAND ..
set -eu
node=$1 place=$2 hears=$3
shift 3
echo "$node" >/proc/sys/kernel/hostname
mount --make-rprivate /
mount -t tmpfs node "$place"
root=$place/root
mkdir "$place/upper" "$place/work" "$root"
# Changes go to the tmpfs and end with the node.
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" node "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
while [ "$1" != -- ]; do
    source=$1 target=$root$2 mode=$3
    shift 3
    if [ -d "$source" ]; then
        mkdir -p "$target"
    else
        mkdir -p "${target%/*}"
        [ -e "$target" ] || : >"$target"
    fi
    mount --bind "$source" "$target"
    [ "$mode" != ro ] || mount -o remount,bind,ro "$target"
done
shift
exec 3>"$hears"
mkdir "$root/run/outside"
cd "$root"
pivot_root . run/outside
umount -l /run/outside
rmdir /run/outside
echo ready >&3
exec 3>&-
exec "$@"
