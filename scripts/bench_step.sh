#!/usr/bin/env bash
# One LoRA training step at 224 px: orthofed and PyTorch with PEFT do the same work, in turn on the same
# cores; that it is the same is checked first. Writes the records as JSON lines and prints the ratios.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'HELP'
usage: scripts/bench_step.sh [--models LIST] [--batches LIST] [--threads N] [--compile | --all-modes] [--out FILE]

  scripts/bench_step.sh                              ViT-Tiny, -Small and -Base at batch 16
  scripts/bench_step.sh --models base --all-modes    PyTorch also compiled, and with each attention backend
  scripts/bench_step.sh --models tiny --batches '1 4 16'

  --models LIST   of tiny, small, base, large (default: 'tiny small base')
  --batches LIST  images a step (default: 16)
  --threads N     of both (default: 2)
  --compile       PyTorch also compiled; otherwise eager in fp32, and in bf16 where the CPU has it
  --all-modes     compiled and with each attention backend forced (bench/peers/README.md)
  --out FILE      where the records go (default: build/bench_step.jsonl); ours with what each kernel took

PyTorch makes model, adapters and images and leaves them under build/; both compute the loss and the
gradient of the first step from them, which must agree, or nothing is recorded. PyTorch comes through
scripts/python.sh; where it cannot be had, that is said and the exit status is 2. Run it on an idle
machine: each record carries the load average.
HELP
}

models='tiny small base' batches=16 threads=2 out=build/bench_step.jsonl modes=()
while (($# > 0)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --compile) modes=(--compile) ;;
    --all-modes) modes=(--compile --attention) ;;
    --models | --batches | --threads | --out)
      (($# > 1)) || { echo "bench_step: $1 needs a value (see scripts/bench_step.sh --help)" >&2; exit 2; }
      declare "${1#--}=$2"
      shift ;;
    *) echo "bench_step: unknown argument '$1' (see scripts/bench_step.sh --help)" >&2; exit 2 ;;
  esac
  shift
done

cmake --preset release >build/bench_step.configure.log || { cat build/bench_step.configure.log; exit 1; }
cmake --build --preset release --target lora_step_bench >build/bench_step.build.log ||
  { cat build/bench_step.build.log; exit 1; }
job=$(mktemp -d build/bench_step.XXXXXX)
trap 'rm -rf "$job"' EXIT
: >"$out"
cpu=$(sed -nE 's/^model name\s*: (.*\S)\s*$/\1/p' /proc/cpuinfo | head -n 1)
cpu=${cpu:-unknown}
field() { sed -nE "s/.*\"$2\": \"?([^,\"}]*).*/\1/p" <<<"$1"; }
ours() {  # precision, further options
  OMP_WAIT_POLICY=active OMP_NUM_THREADS=$threads build/release/bin/lora_step_bench --model "$model" --job "$job/$model" \
    --threads "$threads" --precision "$@"
}
# The relative difference of a figure of two records is at most so much; a NaN is not.
agree() {
  awk -v a="$(field "$1" "$3")" -v b="$(field "$2" "$3")" -v most="$4" \
    'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a + 0 > 0 && d <= most * b) }'
}

printf '%-22s %5s %-18s %10s %12s %12s %10s %8s\n' model batch provider 'step ms' 'images/s' 'predicts/s' \
  'peak MiB' ratio
for model in $models; do
  for batch in $batches; do
    peers=$(scripts/python.sh bench/peers/lora_step.py --threads "$threads" --models "$model" --batch "$batch" \
      --job "$job" "${modes[@]}") || (($? == 1)) || exit 2 # 1: a mode failed, as its record says
    mine=() fastest=''
    for pair in 'f32 fp32 1e-4' 'bf16 bf16 2e-2'; do
      read -r precision mode tolerance <<<"$pair"
      peer=$(grep -F "\"mode\": \"$mode\"" <<<"$peers" | grep -F first_loss) || continue
      record=$(ours "$precision" --profile)
      for figure in first_loss first_gradient_norm; do
        agree "$record" "$peer" "$figure" "$tolerance" || {
          echo "bench_step: not the same work: $model $precision $figure is $(field "$record" "$figure")," \
            "PyTorch's $(field "$peer" "$figure")" >&2
          exit 1
        }
      done
      mine+=("$record")
    done
    ((${#mine[@]} > 0)) || { echo "bench_step: PyTorch measured nothing: $peers" >&2; exit 1; }
    # Which machine, as in the records of kernels (bench/support/record.cc).
    host="{\"cpu\": \"$cpu\", \"cores\": $(nproc), \"threads\": $threads, \"isa\": \"$(field "${mine[0]}" isa)\"}"
    printf '%s\n' "${mine[@]}" "$peers" | sed "s|^{|{\"host\": $host, |" >>"$out"
    while read -r record; do
      ms=$(field "$record" step_ms)
      [[ -n $ms ]] || continue
      if [[ -z $fastest ]] || awk "BEGIN { exit !($ms < $(field "$fastest" step_ms)) }"; then fastest=$record; fi
    done <<<"$peers"
    while read -r record; do
      name=pytorch ratio=''
      if [[ $record == *'"provider": "orthofed"'* ]]; then
        name=orthofed
        ratio=$(awk "BEGIN { printf \"%.2f\", $(field "$fastest" step_ms) / $(field "$record" step_ms) }")
      fi
      printf '%-22s %5s %-18s %10s %12s %12s %10s %8s\n' "$(field "$record" model)" "$batch" \
        "$name $(field "$record" mode)" "$(field "$record" step_ms)" "$(field "$record" images_per_second)" \
        "$(field "$record" inference_images_per_second)" "$(field "$record" peak_rss_mb)" "$ratio"
    done < <(printf '%s\n' "${mine[@]}" "$peers" | grep -F step_ms)
    rm -rf "${job:?}/$model"
  done
done
echo "loss and gradient norm of the first step agree with PyTorch's; ratio: PyTorch's fastest mode / ours"
