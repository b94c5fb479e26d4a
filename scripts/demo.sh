#!/usr/bin/env bash
# Sets up, builds and runs the demonstration, by itself, on a fresh machine.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'HELP'
usage: scripts/demo.sh [--shift S] [--seed N] [--out DIR] [-- OPTIONS OF `orthofed demo`]
Installs what is missing (scripts/setup.sh), builds the release preset, and runs `orthofed demo`: a small
vision transformer is trained on generated cells, then a server and four clients fine-tune it over
sockets with every method. Needs no data and no GPU.

  --shift S   how much the four laboratories differ, 0 to 1 (default 1); 0 is the control in which
              personalisation should bring nothing
  --seed N    another draw of images, weights and order (default 0)
  --out DIR   where results go (default: runs/demo; the last demo there is replaced)

OF_NO_SETUP=1 leaves the packages alone.
HELP
}

out=runs/demo
set_options=()
while (($# > 0)); do
  case "$1" in
    --shift | --seed | --out)
      (($# >= 2)) || { echo "demo: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --shift) set_options+=(--set "data.synthetic.shift=$2") ;;
        --seed) set_options+=(--set "seed=$2") ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    --) shift; break ;;
    -h | --help) usage; exit 0 ;;
    *) echo "demo: unknown option '$1' (see scripts/demo.sh --help)" >&2; exit 2 ;;
  esac
done

begin=$SECONDS
[[ -n ${OF_NO_SETUP-} ]] || scripts/setup.sh
setup=$((SECONDS - begin))

begin=$SECONDS
mkdir -p build
if ! cmake --preset release >build/demo.configure.log 2>&1; then
  cat build/demo.configure.log >&2
  exit 1
fi
cmake --build --preset release --target orthofed
build=$((SECONDS - begin))

# Only what an earlier demo left is replaced.
if [[ -e $out/demo.txt ]]; then rm -rf "$out"; fi
begin=$SECONDS
OMP_WAIT_POLICY=passive build/release/bin/orthofed demo configs/demo.toml --out "$out" \
  "${set_options[@]}" "$@"
echo
echo "set-up $setup s, build $build s, demo $((SECONDS - begin)) s"
