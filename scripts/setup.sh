#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that the build needs and that are missing here.
set -euo pipefail
cd "$(dirname "$0")/.."

required=(
  g++ cmake ninja-build pkg-config
  libasio-dev libssl-dev nlohmann-json3-dev libcli11-dev libtoml11-dev libspdlog-dev libfmt-dev
  libzip-dev libjpeg-dev libstb-dev libboost-context-dev libgtest-dev
)
# The build does without these, with less speed or fewer checks.
optional=(
  libdnnl-dev        # fast matrix products; without it a plain blocked loop serves
  libbenchmark-dev   # the benchmarks
  ccache             # quick rebuilds
  clang-format-14    # the format check of scripts/test.sh
)

case "${1-}" in
  "") ;;
  --list) printf '%s\n' "${required[@]}" "${optional[@]}"; exit 0 ;;
  -h | --help)
    cat <<'HELP'
usage: scripts/setup.sh [--list]
Installs the Debian or Ubuntu packages that orthofed's build needs, as root or through sudo. What is
installed already is left alone; a second run does nothing.
  --list   print the packages, one a line, and install nothing
HELP
    exit 0 ;;
  *) echo "setup: unknown option '$1' (see scripts/setup.sh --help)" >&2; exit 2 ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  {
    echo "setup: this system has no apt-get. Install the counterparts of these Debian packages, then"
    echo "setup: run the other scripts with OF_NO_SETUP=1: ${required[*]}"
    echo "setup: optional: ${optional[*]}"
  } >&2
  exit 2
fi

# The packages among the arguments that are not installed.
missing_of() {
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || echo "$package"
  done
}

# The stamp remembers that this list has been dealt with, so that an optional package that the release
# does not have is not asked for again. dpkg has the last word on the required ones.
stamp=build/setup.stamp
list="$(printf '%s\n' "${required[@]}" "${optional[@]}")"
mapfile -t missing < <(missing_of "${required[@]}")
if ((${#missing[@]} == 0)) && [[ -f $stamp && "$(<"$stamp")" == "$list" ]]; then
  echo "setup: nothing to do, the packages are installed"
  exit 0
fi
mapfile -t wanted < <(missing_of "${optional[@]}")

if ((${#missing[@]} + ${#wanted[@]} > 0)); then
  as_root=()
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "setup: these packages are missing: ${missing[*]} ${wanted[*]}" >&2
      echo "setup: run scripts/setup.sh as root, or install sudo" >&2
      exit 2
    fi
    as_root=(sudo)
  fi
  echo "setup: asking apt for: ${missing[*]} ${wanted[*]}"
  if ! "${as_root[@]}" apt-get update -qq; then
    echo "setup: apt-get update failed; trying with the package lists that are here" >&2
  fi

  available() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }
  unknown=()
  for package in "${missing[@]}"; do available "$package" || unknown+=("$package"); done
  if ((${#unknown[@]} > 0)); then
    # shellcheck source=/dev/null
    release="$(. /etc/os-release && echo "$PRETTY_NAME")"
    echo "setup: apt on $release has no package: ${unknown[*]}" >&2
    echo "setup: needed is Debian 12, Ubuntu 24.04 or newer (on Ubuntu with the component universe)" >&2
    exit 1
  fi
  for package in "${wanted[@]}"; do
    if available "$package"; then
      missing+=("$package")
    else
      echo "setup: this release has no $package: optional, left out"
    fi
  done

  if ((${#missing[@]} > 0)); then
    echo "setup: installing ${#missing[@]} packages: ${missing[*]}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null >/dev/null
  fi
fi

mkdir -p build
printf '%s\n' "$list" >"$stamp"
echo "setup: done"
