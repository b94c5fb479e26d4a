#!/usr/bin/env bash
# One LoRA training step of ViT-Tiny, -Small and -Base at 224 px: orthofed and PyTorch with PEFT, in turn
# on the same cores, and their ratio. Writes the records as JSON lines.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ ${1-} == -h || ${1-} == --help ]]; then
  cat <<'HELP'
usage: scripts/bench_step.sh [MODELS [THREADS [FILE [BATCHES]]]]
  MODELS   default: "tiny small base"
  THREADS  of both (default 2)
  FILE     where the records go (default: build/bench_step.jsonl); ours with what each kernel took
  BATCHES  images a step (default 16)
PyTorch comes through scripts/python.sh; where it cannot be had, that is said and the exit status is 2.
Run it on an idle machine: each record carries the load average.
HELP
  exit 0
fi
models=${1-"tiny small base"} threads=${2-2} file=${3-build/bench_step.jsonl} batches=${4-16}
cmake --preset release >build/bench_step.configure.log
cmake --build --preset release --target lora_step_bench >build/bench_step.build.log
: >"$file"
field() { sed -nE "s/.*\"$2\": \"?([^,\"}]*).*/\\1/p" <<<"$1"; }

printf '%-22s %5s %-14s %10s %12s %10s %10s\n' model batch provider 'step ms' 'images/s' 'peak MiB' 'speed ratio'
for model in $models; do
  for batch in $batches; do
    ours=$(OMP_WAIT_POLICY=active OMP_NUM_THREADS=$threads build/release/bin/lora_step_bench \
      --model "$model" --threads "$threads" --batch "$batch" --profile)
    peers=$(scripts/python.sh bench/peers/lora_step.py --threads "$threads" --models "$model" --batch "$batch")
    printf '%s\n' "$ours" "$peers" >>"$file"
    best=''
    while read -r record; do
      ms=$(field "$record" step_ms)
      [[ -n $ms ]] || continue
      if [[ -z $best ]] || awk "BEGIN { exit !($ms < $(field "$best" step_ms)) }"; then best=$record; fi
    done <<<"$peers"
    for record in "$ours" "$best"; do
      ratio='' name=pytorch
      if [[ $record == "$ours" ]]; then
        name=orthofed
        ratio=$(awk "BEGIN { printf \"%.2f\", $(field "$best" step_ms) / $(field "$ours" step_ms) }")
      fi
      printf '%-22s %5s %-14s %10s %12s %10s %10s\n' "$(field "$record" model)" "$batch" \
        "$name $(field "$record" mode)" "$(field "$record" step_ms)" \
        "$(field "$record" images_per_second)" "$(field "$record" peak_rss_mb)" "$ratio"
    done
  done
done
