#!/bin/sh
# Starts a Prefect worker in a checkout of its own: nfm-worker POOL
#
# The checkout is at the commit that the mounted history has checked out. What runs have written to files that git keeps
# is put back, which costs no training: DVC finds it again in its run-cache.
set -eu
checkout=$HOME/checkout
git init --quiet "$checkout"
cd "$checkout"
rm -f .git/index.lock # left by a kill; nobody else works here
git fetch --quiet /source/.git HEAD
git checkout --quiet --force --detach FETCH_HEAD
exec prefect worker start --pool "$1" --type process --with-healthcheck
