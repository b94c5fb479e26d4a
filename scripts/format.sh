#!/usr/bin/env bash
# Formats the C++ and CUDA sources with clang-format 14, whose output .clang-format was written for.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
  "") mode=(-i) ;;
  --check) mode=(--dry-run --Werror) ;;
  -h | --help)
    echo "usage: scripts/format.sh [--check]"
    echo "Formats every C++ and CUDA source in place; --check changes nothing and fails on a difference."
    exit 0 ;;
  *) echo "format: unknown option '$1' (see scripts/format.sh --help)" >&2; exit 2 ;;
esac

for clang_format in clang-format-14 clang-format ""; do
  if [[ -z $clang_format ]]; then
    echo "format: skipped, clang-format 14 is not installed"
    exit 0
  fi
  "$clang_format" --version 2>/dev/null | grep -q 'version 14\.' && break
done

find kernels engine models federation cli tests bench -type f \
  \( -name '*.h' -o -name '*.cc' -o -name '*.cuh' -o -name '*.cu' \) -print0 |
  xargs -0 -r "$clang_format" "${mode[@]}"
