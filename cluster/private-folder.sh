#!/usr/bin/env bash
# Make /tmp/css-ray-UID, the folder for Ray's sockets, logs and the code that its processes load, which no other user of the
# machine may enter: the one that Ray makes by itself, /tmp/ray, all may write to. The files for `ray up` run this before Ray.
set -euo pipefail

folder=/tmp/css-ray-$(id -u)
mkdir -m 700 "$folder" 2> /dev/null || true
if [[ -L $folder || ! -d $folder || ! -O $folder || $(stat -c %a "$folder") != 700 ]]; then
  echo "$folder is not a folder that only $(id -un) may enter; find out who made it, remove it, and start again" >&2
  exit 1
fi
