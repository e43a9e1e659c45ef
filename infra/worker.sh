#!/bin/sh
# Starts a Prefect worker in a checkout of its own: nfm-worker POOL [HISTORY]
#
# The checkout is at the commit that the mounted history has checked out. What runs have written to files that git keeps
# is put back, which costs no training: DVC finds it again in its run-cache.
set -eu
pool=$1
history=${2:-/source/.git}
checkout=$HOME/checkout
git init --quiet "$checkout"
cd "$checkout"
rm -f .git/index.lock # left by a kill; nobody else works here
git fetch --quiet "$history" HEAD
git checkout --quiet --force --detach FETCH_HEAD
exec prefect worker start --pool "$pool" --type process --with-healthcheck
