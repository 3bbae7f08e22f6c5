#!/usr/bin/env bash
# Measure what docs/benchmarks.md tells of a GPU, on a machine that does nothing else; then run docs/tools/benchmarks.py.
# One part alone: `docs/tools/benchmarks_gpu.sh gpu_eval`. Compiling takes most of the time.
set -euo pipefail
cd "$(dirname "$0")/../.."

MODELS="cloformer_xxs cloformer_xs cloformer_s"
THEIRS="mobilevit_xs mobilevitv2_100 edgenext_x_small swiftformer_s repvit_m1_0 efficientformerv2_s1"

bench() {  # an error row is an answer, and makes the exit status 1
    local name=$1
    shift
    python -m timm_mobilevit_zoo bench "$@" --device cuda --overwrite -o "docs/benchmarks/$name.json" || [ $? = 1 ]
}

gpu_eval() {
    bench gpu_eval $MODELS $THEIRS --dtype fp32 fp16 bf16 --memory-format channels_last --cuda-graphs \
        --batch-size 1 64 --rounds 25 --seconds 60
}
compiled() {
    bench "gpu_compile_$1" cloformer_xxs $THEIRS --backend eager compile --dtype fp16 --memory-format channels_last \
        --cuda-graphs --batch-size "$1" --rounds 25 --seconds 60
}
gpu_compile_1() { compiled 1; }
gpu_compile_64() { compiled 64; }
gpu_train() {
    bench gpu_train cloformer_xxs $THEIRS --mode train --dtype fp32 fp16 bf16 --memory-format channels_last \
        --batch-size 64 --rounds 15 --seconds 60
}

[ $# -gt 0 ] || set -- gpu_eval gpu_compile_1 gpu_compile_64 gpu_train
for part in "$@"; do "$part"; done
