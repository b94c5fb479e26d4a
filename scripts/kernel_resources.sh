#!/usr/bin/env bash
# Registers, spills, stack and static shared memory of every CUDA kernel, from what ptxas said when
# the build compiled it (cmake/ptxas_log.sh). Fails on a spill that nobody has accounted for.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
  -h | --help)
    cat <<'HELP'
usage: scripts/kernel_resources.sh [BUILD]
Writes BUILD/kernel_resources.txt (default: build/release): one line a kernel and architecture with its
registers a thread, bytes spilled (stores and loads), stack, and static shared memory. A spill fails,
unless a comment line right above the kernel in its .cu or .cuh says why it is worth it:
  // spills: 24 bytes outside the main loop; fewer registers would halve the blocks an SM holds
Exit status: 1 for such a spill or a build that lacks logs, 2 where BUILD has no device cuda.
HELP
    exit 0 ;;
  -*) echo "kernel_resources: unknown option '$1' (see scripts/kernel_resources.sh --help)" >&2; exit 2 ;;
esac
build=${1-build/release}
objects=$build/kernels/CMakeFiles/of_kernels_cuda.dir
if [[ ! -d $objects ]]; then
  echo "kernel_resources: $build holds no device cuda; build it where nvcc is installed" >&2
  exit 2
fi

# kernel ; arch ; registers ; spill ; stack ; shared, from the words of ptxas
read_log() {
  c++filt <"$1" | awk '
    /Compiling entry function/ {
      arch = kernel = $0
      sub(/.* for \047/, "", arch); sub(/\047.*/, "", arch)
      sub(/[^\047]*\047/, "", kernel); sub(/\047 for \047sm_.*/, "", kernel)
      sub(/^void /, "", kernel)
      gsub(/orthofed::|gpu::|\(anonymous namespace\)::/, "", kernel)
      # The parameters go: everything from the first parenthesis outside template arguments.
      for (i = 1; i <= length(kernel); ++i) {
        c = substr(kernel, i, 1)
        depth += (c == "<") - (c == ">")
        if (c == "(" && depth == 0) break
      }
      kernel = substr(kernel, 1, i - 1); depth = 0
    }
    / bytes stack frame/ { stack = $1; spill = $5 + $9 }
    / Used [0-9]+ registers/ {
      shared = 0
      registers = $0; sub(/.* Used /, "", registers); sub(/ .*/, "", registers)
      if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
      print kernel ";" arch ";" registers ";" spill ";" stack ";" shared
    }'
}

# The names of kernels below a line "// spills: why"; a blank line ends what such a line speaks of.
excused() {
  awk '
    /^[ \t]*\/\/ spills: [^ ]/ { excuse = 1 }
    /^[ \t]*$/ { excuse = 0 }
    /__global__/ { kernel = 1 }
    kernel {
      gsub(/__launch_bounds__ *\([^)]*\)/, "")
      if (match($0, /[A-Za-z_0-9]+ *\(/)) {
        name = substr($0, RSTART, RLENGTH)
        sub(/ *\(/, "", name)
        if (excuse) print name
        kernel = excuse = 0
      }
    }' "$@"
}

shopt -s nullglob globstar
rows=() unexcused=() missing=()
for source in kernels/*/*.cu; do
  object=$objects/${source#kernels/}.o
  if [[ ! -s $object.ptxas ]]; then
    missing+=("$source")
    continue
  fi
  folder=${source%/*} name=${source#kernels/}
  names=" $(excused "$folder"/*.cu "$folder"/*.cuh | tr '\n' ' ')"
  while IFS=';' read -r kernel arch registers spill stack shared; do
    rows+=("${name%%/*};$kernel;$arch;$registers;$spill;$stack;$shared")
    ((spill == 0)) || [[ $names == *" ${kernel%%<*} "* ]] ||
      unexcused+=("$kernel of $source spills $spill bytes on $arch")
  done < <(read_log "$object.ptxas" | sort -t ';')
done

table=$build/kernel_resources.txt
printf '%s\n' 'folder;kernel;arch;registers;spill;stack;shared' "${rows[@]}" | awk -F ';' '
  { for (i = 1; i <= NF; ++i) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } }
  END {
    for (r = 1; r <= NR; ++r) {
      line = ""
      for (i = 1; i <= NF; ++i) line = line sprintf(i <= 3 ? "%-*s  " : "%*s  ", width[i], cell[r, i])
      sub(/ +$/, "", line)
      print line
    }
  }' >"$table"

for source in "${missing[@]}"; do
  echo "kernel_resources: $build has no log of $source; build it anew" >&2
done
for spill in "${unexcused[@]}"; do
  echo "kernel_resources: $spill; prevent it, or say why in a line '// spills: ...' above it" >&2
done
echo "kernel_resources: ${#rows[@]} compiled kernels, ${#unexcused[@]} with a spill unaccounted for; $table"
((${#missing[@]} + ${#unexcused[@]} == 0))
