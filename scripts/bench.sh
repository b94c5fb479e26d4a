#!/usr/bin/env bash
# Times every kernel on this CPU beside its peers, and a training step beside PyTorch's; writes the
# records and docs/benchmarks.md anew.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'HELP'
usage: scripts/bench.sh [--quick] [--filter REGEX] [--threads N] [--no-step] [--out FOLDER]

  scripts/bench.sh                              every kernel, and the step of ViT-Tiny: under 10 minutes on two cores
  scripts/bench_step.sh --help                  the steps of other models
  scripts/bench.sh --filter 'gelu/.*f32'        some benchmarks; records in build/bench, the page stays as it is
  scripts/bench.sh --quick                      a first look: shorter samples and no training step, likewise
  bench/compare.py OLD.jsonl NEW.jsonl          FASTER, SLOWER or SAME for each record

  --filter REGEX  benchmarks whose names match: KERNEL/f32|bf16/cpu/MODEL
  --threads N     OpenMP threads (default: one a core)
  --no-step       without the training step, for which scripts/python.sh needs PyTorch
  --out FOLDER    where the records go (default: bench/results; with --quick or --filter build/bench)

Run it on an idle machine: each record carries the load average. Exit status 1 if a benchmark failed, which a wrong
result makes it do.
HELP
}

quick='' filter='' threads=$(nproc) step=yes out=''
while (($# > 0)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --quick) quick=yes step='' ;;
    --no-step) step='' ;;
    --filter | --threads | --out)
      (($# > 1)) || { echo "bench: $1 needs a value (see scripts/bench.sh --help)" >&2; exit 2; }
      case "$1" in
        --filter) filter=$2 step='' ;;
        --threads) threads=$2 ;;
        --out) out=$2 ;;
      esac
      shift ;;
    *) echo "bench: unknown argument '$1' (see scripts/bench.sh --help)" >&2; exit 2 ;;
  esac
  shift
done
partial=$quick$filter
[[ -n $out ]] || { out=bench/results; [[ -z $partial ]] || out=build/bench; }

mkdir -p build "$out"
mapfile -t names < <(find bench/kernels -name '*_bench.cc' -printf '%f\n' | sed 's/\.cc$//' | sort)
echo "== build"
cmake --preset release >build/bench.configure.log || { cat build/bench.configure.log; exit 1; }
cmake --build --preset release --target "${names[@]}" >build/bench.build.log || { cat build/bench.build.log; exit 1; }

: >build/bench.jsonl
OF_COMMIT=$(git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
export OF_COMMIT OMP_NUM_THREADS=$threads OMP_WAIT_POLICY=active
begin=$SECONDS failed=0 seconds=0.05
[[ -z $quick ]] || seconds=0.02
for i in "${!names[@]}"; do
  echo "== ${names[i]} ($((i + 1)) of ${#names[@]}, $((SECONDS - begin)) s so far)"
  build/release/bin/"${names[i]}" --json build/bench.jsonl --seconds "$seconds" \
    --benchmark_filter="${filter:-/cpu/}" 2>build/bench.log || { failed=1; tail -n 3 build/bench.log; }
done
if [[ ! -s build/bench.jsonl ]]; then
  ((failed)) || { echo "bench: no benchmark matches '$filter'" >&2; exit 2; }
  exit 1
fi
# 2026-11-24-amd-epyc-x86-64-v4-2core: what is told apart on the page as well.
host=$(sed -nE '1s/.*"cpu": "([^"]*)".*"isa": "([^"]*)".*/\1 \2/p' build/bench.jsonl)
host=$(tr 'A-Z' 'a-z' <<<"$host" | sed -E 's/[^a-z0-9]+/-/g; s/^-|-$//g')
prefix=$out/$(date +%F)-$host-$(nproc)core
kernels=$prefix-kernels.jsonl
mv build/bench.jsonl "$kernels"
echo "$(wc -l <"$kernels") records in $kernels"

if [[ -n $step ]]; then
  echo "== training step"
  steps=$prefix-lora_step.jsonl
  if scripts/bench_step.sh --models tiny --batches '1 16' --threads "$threads" --out build/bench_step.jsonl \
    2>build/bench.step.log; then
    cat build/bench_step.jsonl >>"$steps" # the last record of a step counts
  else
    echo "bench: no training step: $(tail -n 1 build/bench.step.log)"
  fi
fi
if [[ -z $partial ]]; then
  python3 bench/report.py
fi
echo "bench: $((SECONDS - begin)) s"
exit "$failed"
