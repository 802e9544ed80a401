#!/bin/sh
# Runs tox with every Python that pyenv has, besides those on the PATH.  $1: tox
if command -v pyenv >/dev/null; then
    for bin in "$(pyenv root)"/versions/3.1[0-3].*/bin; do
        [ -d "$bin" ] && PATH="$bin:$PATH"
    done
fi
exec "$1" run-parallel --parallel 2 --parallel-no-spinner
