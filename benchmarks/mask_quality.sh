#!/usr/bin/env bash
# Masks of more cells on the nuclei: mask AP and boundary AP after equally many steps of training.
#
#   WEIGHTS=mobilenet_v2_imagenet.pt benchmarks/mask_quality.sh NUCLEI OUT [ITERATIONS]
#
# Trains MobileNetV2-FPN (nuclei.json) from the same weights, one thread each, one after the other: masks of 28 x 28 as
# published, RoIs pooled to 28 x 28, and two transposed convolutions, both with masks of 56 x 56. OUT/NAME/report has
# the pages; the log has the seconds.
set -euo pipefail
nuclei=$1 out=$2 iterations=${3:-400} here=$(dirname "${BASH_SOURCE[0]}")
weights=${WEIGHTS:-none}
for run in "28:--model.mask_head.pool_size 14" "56_pooled:--model.mask_head.pool_size 28" \
    "56_deconvs:--model.mask_head.num_deconvs 2"; do
    name=${run%%:*}
    # shellcheck disable=SC2086
    maskrcnn train --config "$here/nuclei.json" --data "$nuclei" --out "$out/$name" --weights "$weights" --num-threads 1 \
        --train.max_minutes null --train.iterations "$iterations" \
        --train.evaluate_every 0 ${run#*:}
    maskrcnn evaluate --data "$nuclei/annotations/val.json" --images "$nuclei/val" --model "$out/$name" --num-threads 1 \
        --report "$out/$name/report" --json "$out/$name/scores.json"
done
