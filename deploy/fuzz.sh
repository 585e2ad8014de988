#!/bin/bash
# Runs the fuzz targets one after the other, with libFuzzer on stable Rust: TIME seconds each (0: until stopped), TARGET: one.
# What is found is kept beside the build, in fuzz/<target>; a finding ends the run with the command that repeats it.
set -eu -o pipefail
cd "$(dirname "$0")/../fuzz"
targets=${TARGET:-bgp bfd packet objects}
seconds=${TIME:-60}
host=$(rustc -vV | sed -n 's/^host: //p')
build=$(realpath -m "${CARGO_TARGET_DIR:-../target}/fuzz")
# Coverage alone; the sanitizers would need a nightly compiler, and there is next to no unsafe code to watch.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
cargo build --release --target "$host" --target-dir "$build"
for target in $targets; do
    corpus=$build/corpus/$target
    mkdir -p "$corpus"
    echo "fuzz: $target, $([ "$seconds" = 0 ] && echo until stopped || echo "${seconds} s")"
    "$build/$host/release/$target" "$corpus" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=4096 \
        -print_final_stats=1 -artifact_prefix="$build/$target-" 2>"$build/$target.log" || {
        tail -n 40 "$build/$target.log" >&2
        echo "fuzz: $target found something: $build/$host/release/$target $(ls -t "$build/$target"-* | head -n 1)" >&2
        exit 1
    }
    sed -n 's/^stat::number_of_executed_units: */  executions  /p; s/^stat::average_exec_per_sec: */  each second /p' "$build/$target.log"
    echo "  inputs kept  $(find "$corpus" -type f | wc -l)"
done
