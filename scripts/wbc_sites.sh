#!/usr/bin/env bash
# The real run: three laboratories' blood cells, every method, several seeds. Resumable: a run whose
# summary.json exists is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'HELP'
usage: scripts/wbc_sites.sh --data DIR --weights FILE [--out DIR] [--methods "M ..."] [--seeds "N ..."]
                            [--rates "LR ..."] [--lr LR] [-- OPTIONS OF `orthofed run`]

For each method: every learning rate once (seed 0) on a fifth of the training images that is set aside,
then the rate with the best mean balanced accuracy on all training images with every seed, scored once on
the test images (docs/method.md, "Validation"). Ends with `orthofed report`.

  --data DIR       folder with manifest.csv (columns path, site, label, split)
  --weights FILE   ViT-Tiny/16-224, safetensors with timm's names, config.json beside it
  --out DIR        default: runs/wbc
  --methods "..."  default: "opal fedavg dual fedavg_ft local"
  --seeds "..."    default: "0 1 2"
  --rates "..."    default: "3e-4 1e-3 3e-3"
  --lr LR          no search: this learning rate for every method
HELP
}

data='' weights='' out=runs/wbc lr=''
methods='opal fedavg dual fedavg_ft local' seeds='0 1 2' rates='3e-4 1e-3 3e-3'
while (($# > 0)); do
  case "$1" in
    --data | --weights | --out | --methods | --seeds | --rates | --lr)
      (($# >= 2)) || { echo "wbc_sites: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --) shift; break ;;
    -h | --help) usage; exit 0 ;;
    *) echo "wbc_sites: unknown option '$1' (see scripts/wbc_sites.sh --help)" >&2; exit 2 ;;
  esac
done
[[ -n $data && -n $weights ]] || { usage >&2; exit 2; }
program=build/release/bin/orthofed
[[ -x $program ]] || { echo "wbc_sites: build first (scripts/test.sh --fast)" >&2; exit 2; }

# run FOLDER KEY=VALUE...
run() {
  local folder=$1 set=()
  shift
  [[ -e $folder/summary.json ]] && return
  rm -rf "$folder"
  for pair in "$@"; do set+=(--set "$pair"); done
  OMP_WAIT_POLICY=passive "$program" run configs/wbc_sites.toml --set data.root="$data" \
    --set model.weights="$weights" "${set[@]}" "${extra[@]}" --out "$folder"
}
extra=("$@")

# The mean over sites of balanced accuracy in a summary.
mean() { awk '/^  "mean"/ { m = 1 } m && /"balanced_accuracy"/ { gsub(/[^0-9.e-]/, "", $2); print $2; exit }' "$1/summary.json"; }

for method in $methods; do
  rate=$lr
  if [[ -z $rate ]]; then
    best=-1
    for candidate in $rates; do
      folder=$out/validation/$method-$candidate
      run "$folder" method="$method" seed=0 train.lr="$candidate" data.validation=0.2
      score=$(mean "$folder")
      echo "$method, rate $candidate: $score on validation images"
      if awk "BEGIN { exit !($score > $best) }"; then best=$score rate=$candidate; fi
    done
  fi
  echo "$method: rate $rate"
  for seed in $seeds; do run "$out/test/$method-$seed" method="$method" seed="$seed" train.lr="$rate"; done
done
"$program" report "$out/test"
