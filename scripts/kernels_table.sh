#!/usr/bin/env bash
# Writes the lists and the table of docs/kernels.md from the sources and from the records of runs on GPUs.
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
Writes the lists and the table of docs/kernels.md anew: every kernel with the first sentence of its contract, its
functions on a GPU, its tests, where these have passed (bench/results/gpu*/*.jsonl, which scripts/gpu.sh writes),
and its versions. --check changes nothing and fails where the page is not what would be written.
HELP
    exit 0 ;;
  *) echo "kernels_table: unknown option '$1' (see scripts/kernels_table.sh --help)" >&2; exit 2 ;;
esac

# The first sentence of the comment that a file begins with.
sentence() {
  awk '
    !/^\/\// { exit }
    { sub(/^\/\/ ?/, "") }
    /^ *$/ { exit }
    { text = text " " $0 }
    END {
      gsub(/ +/, " ", text); sub(/^ /, "", text)
      if (match(text, /[^A-Z]\. [A-Za-z]/)) text = substr(text, 1, RSTART + 1)  # no initial
      gsub(/</, "\\&lt;", text)
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

# An item of a list, in lines of at most 120 columns.
item() {
  fold -s -w 118 <<<"- $1" | sed -E '2,$ s/^/  /; s/ +$//'
}

tables() {
  local header name folder tests test devices rung text where names=()
  for folder in kernels/*/; do
    name=$(basename "$folder")
    [[ $name == core || $name == simt ]] || names+=("$name")
  done
  for name in "${names[@]}"; do
    item "[$name](../kernels/$name/$name.h): $(sentence "kernels/$name/$name.h")"
  done
  echo
  echo '| kernel | on a GPU | tests | simt | GPU, commit |'
  echo '|---|---|---|---|---|'
  for name in "${names[@]}"; do
    header=kernels/$name/$name.h
    test=tests/kernels/${name}_test.cc
    tests=$({ grep -rlF "#include \"$header\"" tests --include='*_test.cc' || true; } | sort |
      sed -E 's|.*/(.*)\.cc|\1|' | paste -sd ' ' | sed 's/ /, /g')
    devices=''
    [[ ! -e kernels/$name/$name.cu ]] || ! grep -qE 'for_each_(device|gpu)' "$test" || devices=yes
    echo "| $name | $(gpu_functions "$header" "$name") | $tests | $devices | $(verified "${name}_test") |"
  done
  echo
  for rung in kernels/*/[0-9][0-9]_*.cuh; do
    [[ -e $rung ]] || continue
    where=''
    ! grep -q '^// GPU only' "$rung" || where=' (cuda only)'
    text=$(sentence "$rung")
    item "$(basename "$(dirname "$rung")") [${text%%[:.]*}](../$rung)$where:${text#*[:.]}"
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
