#!/usr/bin/env bash
# Runs a Python script that compares orthofed with PyTorch, in a virtual environment outside the
# checkout that is made on first use:
#   scripts/python.sh bench/peers/lora_step.py --threads 2
# OF_VENV names another place for it. `--with PACKAGE`, before the script and as often as wanted, is
# for what few scripts need:
#   scripts/python.sh --with transformers scripts/peft_roundtrip.py
#   scripts/python.sh --with transformers --with open_clip_torch tests/fixtures/make_backbones.py
# versions.txt in the environment says what was installed. Exit status 2: it cannot be made.
set -euo pipefail

fail() {
  echo "python.sh: $*" >&2
  exit 2
}

packages=(torch timm peft safetensors numpy pillow)
while [ "${1:-}" = --with ]; do
  [ $# -gt 1 ] || fail "--with: name a package, for example transformers"
  packages+=("$2")
  shift 2
done
[ $# -gt 0 ] || fail "which script? For example: scripts/python.sh bench/peers/lora_step.py --help"
venv=${OF_VENV:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/orthofed/venv}

# By the packages' metadata, without spending the seconds that importing them takes.
complete() {
  "$venv/bin/python" -c '
import sys
from importlib.metadata import version
for package in sys.argv[1:]:
    version(package)
' "${packages[@]}" 2>/dev/null
}

if ! complete; then
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  command -v python3 >/dev/null || fail "python3 is not installed"
  python3 -m venv "$venv" >"$log" 2>&1 ||
    fail "no virtual environment in $venv (Debian: apt install python3-venv): $(tail -n 1 "$log")"
  echo "python.sh: installing ${packages[*]} into $venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" >"$log" 2>&1 ||
    fail "cannot fetch ${packages[*]}: $(grep -m 1 -i error "$log" || tail -n 1 "$log")"
  complete || fail "$venv lacks one of ${packages[*]} after installing them"
  "$venv/bin/pip" freeze --disable-pip-version-check >"$venv/versions.txt"
  rm -f "$log"
fi
export PYTHONDONTWRITEBYTECODE=1  # the checkout stays clean
exec "$venv/bin/python" "$@"
