#!/usr/bin/env bash
# Finer masks on the nuclei: mask AP and boundary AP after equally many steps of training, and what these cost.
#
#   WEIGHTS=mobilenet_v2_imagenet.pt benchmarks/mask_quality.sh NUCLEI OUT [ITERATIONS]
#
# Trains MobileNetV2-FPN (nuclei.json) from the same weights, one thread each, one after the other: masks of 28 x 28 as
# published, RoIs pooled to 28 x 28 and two transposed convolutions, both with masks of 56 x 56, and PointRend, with masks
# of 224 x 224. OUT/NAME/report has the pages; OUT/NAME.seconds and OUT/NAME.evaluation.seconds the processor's seconds,
# which other work on the machine hardly touches.
set -euo pipefail
nuclei=$1 out=$2 iterations=${3:-400} here=$(dirname "${BASH_SOURCE[0]}")
weights=${WEIGHTS:-none}
TIMEFORMAT=%U
mkdir -p "$out"

timed() { # FILE COMMAND...
    { time "${@:2}" 2>&3; } 3>&2 2>"$1"
}

for run in "28:--model.mask_head.pool_size 14" "56_pooled:--model.mask_head.pool_size 28" \
    "56_deconvs:--model.mask_head.num_deconvs 2" "point_rend:--model.mask_head.point_rend {}"; do
    name=${run%%:*}
    # shellcheck disable=SC2086
    timed "$out/$name.seconds" maskrcnn train --config "$here/nuclei.json" --data "$nuclei" --out "$out/$name" \
        --weights "$weights" --num-threads 1 --train.max_minutes null --train.iterations "$iterations" \
        --train.evaluate_every 0 ${run#*:}
    timed "$out/$name.evaluation.seconds" maskrcnn evaluate --data "$nuclei/annotations/val.json" \
        --images "$nuclei/val" --model "$out/$name" --num-threads 1 --report "$out/$name/report" \
        --json "$out/$name/scores.json"
done
