#!/bin/sh
# One of several movers that share a volume: take a key that nobody else has, keep it as long as we live.
#
#   mover.sh FOLDER      FOLDER/keys has mover-1.secret, mover-2.secret ...; FOLDER/mover.toml the configuration
#
# Every mover has an identity of its own (grants are bound to the holder's key), and `--scale mover=N` knows no names.
# The lock is a file lock that the mover inherits, so it ends with the process, however that ends.
set -eu
folder=$1

for secret in "$folder"/keys/mover-*.secret; do
    name=$(basename "$secret" .secret)
    exec 9>"$folder/keys/$name.lock"
    if flock --nonblock 9; then
        export MOVER_NODE_KEY_FILE="$secret"
        exec mover-node --config "$folder/mover.toml"
    fi
done
echo "all $(ls "$folder"/keys/mover-*.secret | wc -l) mover keys are in use: set MOVERS_MAX, and run the service init again" >&2
exit 2
