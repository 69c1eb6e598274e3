#!/bin/sh
# Starts a real quorate-node from a checkpoint of a given size and tells when it was ready. The directory is kept, so that
# a second run with the same size only starts.
#   restart.sh QUORATE-NODE DIRECTORY BYTES VALUE-BYTES
set -eu
node=$1 dir=$2 bytes=$3 value=$4
client=23791 peer=23801 admin=23811
start() {
    "$node" --name a --data-dir "$dir/a" --initial-cluster "a=http://127.0.0.1:$peer" \
        --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
        --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
        --listen-admin-urls "http://127.0.0.1:$admin" --quota-backend-bytes 8589934592 "$@" >"$dir/log" 2>&1 &
    pid=$!
    until curl -fs -o /dev/null "http://127.0.0.1:$client/readyz"; do
        kill -0 "$pid" || { cat "$dir/log"; exit 1; }
        sleep 0.02
    done
}
stop() {
    kill "$pid"
    wait "$pid" || true
}
if [ ! -d "$dir/a/snap" ]; then
    mkdir -p "$dir"
    # The first entries of a founded member are enough for a checkpoint.
    start --snapshot-count 1
    sleep 1
    stop
    (cd "$(dirname "$0")/../.." && FILL_DIR="$dir/a" FILL_BYTES="$bytes" FILL_VALUE="$value" \
        cargo test -q -p quorate-node --lib snapshot::tests::fill -- --ignored --nocapture)
fi
for _ in 1 2 3; do
    before=$(date +%s%N)
    start
    after=$(date +%s%N)
    rss=$(awk '/VmRSS/ { print $2 / 1024 }' "/proc/$pid/status")
    echo "ready after $(((after - before) / 1000000)) ms, RSS $rss MiB, checkpoint $(du -sm "$dir/a/snap" | cut -f1) MiB"
    stop
done
