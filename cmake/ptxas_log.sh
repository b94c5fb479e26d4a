#!/usr/bin/env bash
# nvcc's launcher (cmake/cuda.cmake): keeps what `-Xptxas -v` says of each kernel in OBJECT.ptxas
# beside the object, where scripts/kernel_resources.sh reads it, and hands on everything else that
# was said. ccache runs inside: it stores nvcc's words with the object and repeats them on a hit.
set -uo pipefail

object='' previous=''
for word in "$@"; do
  [[ $previous == -o ]] && object=$word
  previous=$word
done
[[ $object == *.o ]] || exec "$@"

said=$("$@" 2>&1)
status=$?
of_ptxas='^ptxas info|^ +[0-9]+ bytes stack frame'
grep -E "$of_ptxas" <<<"$said" >"$object.ptxas"
grep -Ev "$of_ptxas|^$" <<<"$said" >&2
exit "$status"
