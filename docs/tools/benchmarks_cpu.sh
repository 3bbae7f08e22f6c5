#!/usr/bin/env bash
# Measure what docs/benchmarks.md tells of a CPU, on a machine that does nothing else; then run docs/tools/benchmarks.py.
# It needs the extras export and viz, an hour or more, and the authors' code (docs/tools/authors.py). One part alone:
# `docs/tools/benchmarks_cpu.sh growth`.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/docs/tools${PYTHONPATH:+:$PYTHONPATH}"  # authors.py, growth.py

MODELS="cloformer_xxs cloformer_xs cloformer_s"
THEIRS="mobilevit_xs mobilevitv2_100 edgenext_x_small swiftformer_s repvit_m1_0 efficientformerv2_s1"

bench() {  # an error row is an answer, and makes the exit status 1
    local name=$1
    shift
    python -m timm_mobilevit_zoo bench "$@" --device cpu --overwrite -o "docs/benchmarks/$name.json" || [ $? = 1 ]
}

authors() {
    for size in xxs s; do
        bench authors_$size cloformer_$size --against authors:$size --threads 1 2 --batch-size 1 8 --rounds 15 \
            --backend eager fuse prepack compile onnxruntime openvino --seconds 60
        bench authors_${size}_bf16 cloformer_$size --against authors:$size --threads 1 2 --batch-size 1 8 --rounds 15 \
            --backend openvino --dtype fp32 bf16 --seconds 60
        bench authors_${size}_train cloformer_$size --against authors:$size --threads 1 2 --batch-size 1 8 \
            --mode train --backend eager compile --rounds 15 --seconds 60
    done
}
cpu_eval() {
    bench cpu_eval $MODELS $THEIRS --backend eager prepack onnxruntime openvino \
        --batch-size 1 8 --threads 1 2 --rounds 15 --seconds 60
}
int8() {
    bench int8 cloformer_xxs casvit_xs mobilevitv3_xxs mobilevit_xs --backend onnxruntime --dtype fp32 int8 \
        --threads 1 2 --rounds 15 --seconds 60
}
cpu_train() { bench cpu_train $MODELS $THEIRS --mode train --batch-size 8 --threads 1 2 --rounds 7 --seconds 60; }
growth() {
    bench growth cloformer_xxs cloformer_xxs_local cloformer_xxs_global growth:pooled_branch mobilevitv3_xxs \
        mobilevitv3_050 mobilevit_wide_xxs casvit_xs edgevit_xxs efficientmod_xxs $THEIRS \
        --img-size 128 224 512 1024 --threads 1 --rounds 15 --seconds 60
}
# What the first picture shows, for 224 pixels: the smallest of each family with a claim, and timm's.
frontier() {
    bench frontier cloformer_xxs casvit_xs edgevit_xxs efficientmod_xxs recnext_m0 recnext_a0 moganet_xt van_b0 \
        repnext_m0 unireplknet_a mobilevitv3_xxs \
        mobilevitv3_050 cloformer_xs cloformer_s $THEIRS --backend eager openvino --threads 1 --rounds 15 --seconds 60  # six minutes with --seconds 4
}
batches() { bench batches cloformer_xxs $THEIRS --batch-size 1 4 16 --threads 1 --rounds 7 --seconds 60; }
large() {
    bench large cloformer_xxs cloformer_xxs_local growth:first_wide growth:wide_windows growth:first_local \
        growth:halved --backend eager --img-size 512 1024 --threads 1 2 --rounds 15 --seconds 60
}

[ $# -gt 0 ] || set -- authors cpu_eval int8 cpu_train growth frontier batches large
for part in "$@"; do "$part"; done
