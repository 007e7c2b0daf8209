#!/usr/bin/env bash
# Checks and measures a GPU with binaries that were built elsewhere; builds nothing, prints one table.
#
# Where there is a compiler:  scripts/gpu-check.sh pack cuda      builds, and puts binaries and fixtures into gpu-check/
# On the machine with a GPU:  scripts/gpu-check.sh run cuda       (in the folder that holds gpu-check/ and scripts/)
#
# MODEL names a model for the measurements, L2D_SLACK what tolerances are multiplied with (10 where f32 products are TF32).
set -euo pipefail
cd "$(dirname "$0")/.."
action=${1:?pack or run} backend=${2:?a backend: cuda, vulkan, metal, wgpu}
folder=gpu-check

pack() {
    rm -rf "$folder"
    mkdir -p "$folder/parity"
    cargo build --release --locked -p l2d-cli --features "$backend,autotune"
    cp target/release/l2d "$folder/"
    # The test binary's path is what cargo says of it last.
    suite=$(cargo test --release --locked -p l2d-cli --features "$backend,autotune" --test conformance --no-run 2>&1 |
        sed -n 's/.*(\(.*conformance-[0-9a-f]*\))$/\1/p' | tail -1)
    cp "$suite" "$folder/conformance"
    cp -r l2d-core/tests/fixtures/parity/. "$folder/parity/"
    du -sh "$folder"
}

check() {
    export L2D_PARITY=$PWD/$folder/parity
    "$folder/l2d" doctor
    # A device computes one test at a time.
    ended=0
    "$folder/conformance" "$backend::" --test-threads=1 >"$folder/conformance.log" || ended=$?
    grep -v '^$' "$folder/conformance.log" || true
    listed=$("$folder/conformance" "$backend::" --list | grep -c ': test$' || true)
    failed=$(grep -c '\.\.\. FAILED$' "$folder/conformance.log" || true)
    passed=$(grep -c '\.\.\. ok$' "$folder/conformance.log" || true)
    ignored=$(grep -c '\.\.\. ignored' "$folder/conformance.log" || true)
    # A driver that takes the process with it leaves tests that neither passed nor failed.
    lost=$((listed - passed - failed - ignored))
    echo
    echo "| check | result |"
    echo "|---|---|"
    echo "| conformance on $backend | $passed passed, $failed failed, $ignored ignored, $lost not run to their end (exit code $ended) |"
    if [ -n "${MODEL:-}" ]; then
        "$folder/l2d" warmup --backend "$backend" --model "$MODEL" --batch 1,8 --prompt 128 >/dev/null
        "$folder/l2d" bench decode --backend "$backend" --model "$MODEL" --batch 1,8 | sed 's/^/    /'
        "$folder/l2d" bench train --backend "$backend" --model "$MODEL" | sed 's/^/    /'
    fi
    [ "$ended" = 0 ] && [ "$failed" = 0 ] && [ "$lost" = 0 ] && [ "$passed" -gt 0 ]
}

case $action in
pack) pack ;;
run) check ;;
*) echo "pack or run, not $action" >&2 && exit 2 ;;
esac
