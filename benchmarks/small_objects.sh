#!/usr/bin/env bash
# Anchors that fit a data set on the nuclei: mask AP by size with the usual sizes, 32 to 512 pixels, and with `auto`.
#
#   WEIGHTS=mobilenet_v2_imagenet.pt benchmarks/small_objects.sh NUCLEI OUT [ITERATIONS]
#
# Trains MobileNetV2-FPN (nuclei.json) from the same weights for equally many steps, one thread each, one after the other.
set -euo pipefail
nuclei=$1 out=$2 iterations=${3:-400} here=$(dirname "${BASH_SOURCE[0]}")
for run in "usual:((32,),(64,),(128,),(256,),(512,))" "auto:auto"; do
    name=${run%%:*}
    maskrcnn train --config "$here/nuclei.json" --data "$nuclei" --out "$out/$name" --weights "${WEIGHTS:-none}" \
        --num-threads 1 --train.max_minutes null --train.iterations "$iterations" --train.evaluate_every 0 \
        --model.rpn.anchor_sizes "${run#*:}"
    maskrcnn evaluate --data "$nuclei/annotations/val.json" --images "$nuclei/val" --model "$out/$name" --num-threads 1 \
        --max-detections 400 --json "$out/$name/scores.json"
done
