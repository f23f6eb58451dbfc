#!/bin/sh
# All that is to be known on a GPU, in parts of at most ten minutes, each with its results in OUT/partN.
#
#   benchmarks/gpu_all.sh OUT [PART] [--tiny]
#
# 1  checks: kernels beside torchvision and grid_sample in every precision, training and detections beside the CPU's,
#    determinism
# 2  operators: RoIAlign beside torchvision's, DCNv3 and deformable attention beside grid_sample, share of the bandwidth
# 3  R50-FPN beside torchvision's model with the same weights, at every batch and precision; a profile; the engines
#    `compile` and `cuda-graph` beside plain PyTorch
# 4  InternImage-T and ViT-Adapter-S
# 5  the report: maskrcnn bench --gpu-report
#
# Without PART all of them, one after the other; a part that fails does not stop the next. A part has LIMIT seconds
# (570): what runs then is ended, and what it had found lies in OUT, as every script writes row by row. Part 5 goes on
# where it was if it is started again.
# PYTHON names the interpreter (python3); it needs PyTorch, torchvision, Triton, numpy and Pillow. DEVICE is cuda; with
# --tiny and DEVICE=cpu every line runs in small, to see that it works: figures of that say nothing.
set -u
usage() { sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 2; }
tiny= part= out=
for word in "$@"; do
    case $word in
        --tiny) tiny=--tiny ;;
        [1-5]) part=$word ;;
        -*) usage ;;
        *) [ -z "$out" ] || usage; out=$word ;;
    esac
done
[ -n "$out" ] || usage
here=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} LIMIT=${LIMIT:-570}
PYTHONPATH=$here/../src${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
status=0

run() {  # SHARE NAME COMMAND...: at most that share of the part's LIMIT, in %; its output goes to OUT/partN/NAME.txt too
    most=$((LIMIT * $1 / 100)) name=$2; shift 2
    started=$(date +%s)
    left=$((began + LIMIT - started))
    [ $most -le $left ] || most=$left
    if [ $most -le 0 ]; then
        echo "== $name: not run, the part's $LIMIT s are over" | tee -a "$folder/times.txt"
        status=1
        return
    fi
    echo "== part $part: $name, at most $most s: $*"
    timeout -k 10 "$most" "$@" >"$folder/$name.txt" 2>&1
    code=$?
    tail -n 12 "$folder/$name.txt"
    why=; [ $code -ne 124 ] || why=" (ended after $most s)"
    echo "== $name: exit status $code$why, $(($(date +%s) - started)) s" | tee -a "$folder/times.txt"
    [ $code -eq 0 ] || status=1
}

script() {  # SHARE NAME SCRIPT OPTIONS...
    share=$1 name=$2 file=$3; shift 3
    run "$share" "$name" "$PYTHON" "$here/$file.py" --device "$DEVICE" --out "$folder" "$@"
}
bench() {  # NAME OPTIONS...
    name=$1; shift
    run 100 "$name" "$PYTHON" -m maskrcnn bench --gpu-report --device "$DEVICE" $tiny --timeout $((LIMIT / 2)) \
        --out "$folder/$name" "$@"
}

smoke=${tiny:+--smoke}
part1() { script 100 checks gpu_checks $tiny; }
part2() {
    script 50 roi_align gpu_speed --only roi_align $smoke
    # minutes on a CPU, where part 1 has tried the operators
    [ -n "$tiny" ] || script 100 deformable deformable --precisions fp32 fp16 bf16
}
part3() {
    script 20 profile gpu_profile $tiny
    script 65 beside_torchvision gpu_speed --only models --seconds 1 $smoke
    script 100 engines gpu_speed --only engines $smoke
}
part4() {
    bench transformers --models mask_rcnn_internimage_t_fpn_1x_coco mask_rcnn_deit_adapter_small_fpn_3x_coco --precisions bf16
}
# What the page's charts show comes first.
part5() { bench report --precisions fp32 fp16 bf16 tf32; }

for part in ${part:-1 2 3 4 5}; do
    folder=$out/part$part began=$(date +%s)
    mkdir -p "$folder" || exit 2
    "part$part"
done
exit $status
