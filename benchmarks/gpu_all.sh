#!/bin/sh
# All that is to be known on a GPU, in parts of at most ten minutes, each with its results in OUT/partN.
#
#   benchmarks/gpu_all.sh OUT [PART] [--tiny]
#
# 1  checks: kernels beside torchvision and grid_sample in every precision, training and detections beside the CPU's,
#    determinism
# 2  operators: RoIAlign beside torchvision's, DCNv3 and deformable attention beside grid_sample, share of the bandwidth
# 3  R50-FPN beside torchvision's model with the same weights, at every batch and precision; the engines `compile` and
#    `cuda-graph`; a profile
# 4  InternImage-T and ViT-Adapter-S
# 5  the report: maskrcnn bench --gpu-report
#
# Without PART all of them, one after the other; a part that fails does not stop the next. PYTHON names the interpreter
# (python3); it needs PyTorch, torchvision, Triton, numpy and Pillow. DEVICE is cuda; with --tiny and DEVICE=cpu every
# line runs in small, to see that it works: figures of that say nothing.
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
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda}
PYTHONPATH=$here/../src${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
status=0

run() {  # NAME COMMAND...: its output goes to OUT/partN/NAME.txt too
    name=$1; shift
    echo "== part $part: $name: $*"
    started=$(date +%s)
    "$@" >"$folder/$name.txt" 2>&1
    code=$?
    tail -n 12 "$folder/$name.txt"
    echo "== $name: exit status $code, $(($(date +%s) - started)) s" | tee -a "$folder/times.txt"
    [ $code -eq 0 ] || status=1
}

script() { run "$1" "$PYTHON" "$here/$2.py" --device "$DEVICE" --out "$folder" $3; }
bench() {  # NAME OPTIONS...
    name=$1; shift
    run "$name" "$PYTHON" -m maskrcnn bench --gpu-report --device "$DEVICE" $tiny --out "$folder/$name" "$@"
}

part1() { script checks gpu_checks "$tiny"; }
part2() {
    smoke=${tiny:+--smoke}
    script roi_align gpu_speed "--only roi_align $smoke"
    # minutes on a CPU, where part 1 has tried the operators
    [ -n "$tiny" ] || script deformable deformable "--precisions fp32 fp16 bf16"
}
part3() {
    script beside_torchvision gpu_speed "--only models --seconds 2 ${tiny:+--smoke}"
    script profile gpu_profile "$tiny"
    # CPUs have their own: this is to see what torch.compile gives on a GPU
    [ -n "$tiny" ] || bench compiled --engine compile --precisions bf16 tf32
    [ -n "$tiny" ] || bench graphed --engine cuda-graph --precisions bf16 tf32
}
part4() {
    bench transformers --models mask_rcnn_internimage_t_fpn_1x_coco mask_rcnn_deit_adapter_small_fpn_3x_coco --precisions bf16
}
part5() { bench report; }

for part in ${part:-1 2 3 4 5}; do
    folder=$out/part$part
    mkdir -p "$folder" || exit 2
    "part$part"
done
exit $status
