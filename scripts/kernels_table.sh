#!/usr/bin/env bash
# Writes the tables of docs/kernels.md from the sources and from the records of runs on GPUs.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C
cd "$(dirname "$0")/.."

page=docs/kernels.md
case "${1-}" in
  "" | --check) ;;
  -h | --help)
    cat <<'HELP'
usage: scripts/kernels_table.sh [--check]
Writes the tables of docs/kernels.md anew: every kernel with the first sentence of its contract, its functions
on a GPU, its versions, its tests, and where these have passed (bench/results/gpu*/*.jsonl, which scripts/gpu.sh
writes). --check changes nothing and fails where the page is not what would be written.
HELP
    exit 0 ;;
  *) echo "kernels_table: unknown option '$1' (see scripts/kernels_table.sh --help)" >&2; exit 2 ;;
esac

# The first sentence of the comment that a file begins with, as a cell of a table.
sentence() {
  awk '
    !/^\/\// { exit }
    { sub(/^\/\/ ?/, "") }
    /^ *$/ { exit }
    { text = text " " $0 }
    END {
      gsub(/ +/, " ", text); sub(/^ /, "", text)
      if (match(text, /[^A-Z]\. [A-Za-z]/)) text = substr(text, 1, RSTART + 1)  # no initial
      gsub(/\|/, "\\|", text); gsub(/</, "\\&lt;", text)
      print text
    }' "$1"
}

# The functions that a contract declares in namespace gpu, without the kernel's own name before them.
gpu_functions() {
  awk -v name="$2" '
    /^namespace orthofed::gpu \{/ { inside = 1 }
    /^}/ { inside = 0 }
    inside && match($0, /^void [a-z0-9_]+\(/) {
      f = substr($0, 6, RLENGTH - 6)
      if (index(f, name "_") == 1) f = substr(f, length(name) + 2)
      if (!(f in seen)) list = list (list == "" ? "" : ", ") f
      seen[f] = 1
    }
    END { print list }' "$1"
}

# GPU and commit of every record of a test that passed without a skip.
verified() {
  shopt -s nullglob
  cat /dev/null bench/results/gpu*/*.jsonl |
    sed -nE "/\"test\": \"$1\".*\"failed\": 0, \"skipped\": 0[,}]/ {
      s/.*\"gpu\": \"([^\"]*)\".*\"commit\": \"([^\"]*)\".*/\1 at \2/p }" |
    sort -u | sed ':all; N; $!b all; s/\n/, /g'
}

tables() {
  local header name folder tests test devices rung file where
  echo '| kernel | what | on a GPU | tests | simt | GPU, commit |'
  echo '|---|---|---|---|---|---|'
  for folder in kernels/*/; do
    name=$(basename "$folder")
    header=kernels/$name/$name.h
    [[ $name != core && $name != simt ]] || continue
    test=tests/kernels/${name}_test.cc
    tests=$({ grep -rlF "#include \"$header\"" tests --include='*_test.cc' || true; } | sort |
      sed -E 's|.*/(.*)\.cc|\1|' | paste -sd ' ' | sed 's/ /, /g')
    devices=''
    [[ ! -e kernels/$name/$name.cu ]] || ! grep -qE 'for_each_(device|gpu)' "$test" || devices=yes
    echo "| [$name](../$header) | $(sentence "$header") | $(gpu_functions "$header" "$name") |" \
      "$tests | $devices | $(verified "${name}_test") |"
  done
  echo
  echo '| kernel | version | what changed, and why it is faster | runs on |'
  echo '|---|---|---|---|'
  for rung in kernels/*/[0-9][0-9]_*.cuh; do
    [[ -e $rung ]] || continue
    file=$(basename "$rung") name=$(basename "$(dirname "$rung")") where='cuda, simt'
    ! grep -q '^// GPU only' "$rung" || where='cuda only'
    echo "| $name | [${file%.cuh}](../$rung) | $(sentence "$rung") | $where |"
  done
}

begin='<!-- written by scripts/kernels_table.sh -->'
written=$(sed "\|^$begin\$| q" "$page"; echo; tables)
if [[ ${1-} != --check ]]; then
  printf '%s\n' "$written" >"$page"
elif ! diff <(printf '%s\n' "$written") "$page" >/dev/null; then
  echo "kernels_table: $page is not up to date: run scripts/kernels_table.sh" >&2
  exit 1
fi
