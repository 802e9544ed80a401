#!/bin/sh
# Runs tox with every Python that pyenv has, besides those on the PATH.  $1: tox, $2: environments, all if left out
if command -v pyenv >/dev/null; then
    for bin in "$(pyenv root)"/versions/3.1[0-3].*/bin; do
        [ -d "$bin" ] && PATH="$bin:$PATH"
    done
fi
exec "$1" run-parallel ${2:+-e "$2"} --parallel 2 --parallel-no-spinner
