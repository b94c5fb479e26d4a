#!/usr/bin/env bash
# Sets up, builds and tests, by itself, on a fresh machine. The last line is the sum of all stages.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

usage() {
  cat <<'HELP'
usage: scripts/test.sh [--fast | --all] [--asan] [--tsan] [--ci]
Installs what is missing (scripts/setup.sh), builds under build/<preset>, and runs these stages:

  release   every test, optimised                                        always, unless only
  cuda      every .cu compiled (by the release build) without spilled    --asan or --tsan is given
            registers; skipped where nvcc is absent
  format    clang-format 14 on every source, skipped where it is absent;
            the tables of docs/kernels.md
  asan      AddressSanitizer and UBSan, without the tests labelled slow  default, --all, --asan
  tsan      ThreadSanitizer, without the tests labelled slow and         --all, --tsan
            without attention and matmul, which take many minutes

  --fast    release, cuda and format
  --all     all five
  --asan    asan alone; with --tsan both
  --tsan    tsan alone
  --ci      warnings are errors; set by the environment variable CI as well

OF_NO_SETUP=1 leaves the packages alone. CMAKE_BUILD_PARALLEL_LEVEL and CTEST_PARALLEL_LEVEL bound
the jobs. The exit status is 0 if nothing failed.
HELP
}

stages=()
werror=OFF
[[ -n ${CI-} ]] && werror=ON
for option in "$@"; do
  case "$option" in
    --fast) stages+=(release cuda format) ;;
    --all) stages+=(release cuda format asan tsan) ;;
    --asan) stages+=(asan) ;;
    --tsan) stages+=(tsan) ;;
    --ci) werror=ON ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test: unknown option '$option' (see scripts/test.sh --help)" >&2; exit 2 ;;
  esac
done
((${#stages[@]} > 0)) || stages=(release cuda format asan)
wanted() { [[ " ${stages[*]} " == *" $1 "* ]]; }

passed=0 failed=0 skipped=0 failures=()
fail() {
  failed=$((failed + 1))
  failures+=("$1")
}

# Configures, builds and runs the tests of one preset; the remaining arguments go to ctest.
run_preset() {
  local preset=$1 log=build/$1/test.log line
  shift
  echo "== $preset"
  if ! cmake --preset "$preset" -DOF_WERROR="$werror" >build/"$preset".configure.log 2>&1; then
    cat build/"$preset".configure.log
    fail "$preset: configure"
    return
  fi
  if ! cmake --build --preset "$preset"; then
    fail "$preset: build"
    return
  fi
  "${launcher[@]}" ctest --preset "$preset" "$@" | tee "$log"
  # "98% tests passed, 1 tests failed out of 57", then the names of those that did not run or failed.
  line="$(grep -E '^[0-9]+% tests passed, [0-9]+ tests? failed out of [0-9]+' "$log")"
  if [[ -z $line ]]; then
    fail "$preset: ctest ran no test"
    return
  fi
  local total name bad=0 skips
  total="${line##* }"
  skips="$(grep -cE '^\s+[0-9]+ - .* \((Skipped|Disabled)\)$' "$log")"
  while read -r name; do
    fail "$preset: $name"
    bad=$((bad + 1))
  done < <(sed -n '/^The following tests FAILED:/,$p' "$log" | sed -nE 's/^\s+[0-9]+ - (.*)$/\1/p')
  skipped=$((skipped + skips))
  passed=$((passed + total - bad - skips))
}

begin=$SECONDS
if [[ -z ${OF_NO_SETUP-} ]]; then
  scripts/setup.sh || exit
fi
mkdir -p build
export CTEST_PARALLEL_LEVEL="${CTEST_PARALLEL_LEVEL-$(nproc)}"
launcher=()

wanted release && run_preset release
if wanted cuda; then
  echo "== cuda"
  if ! grep -qE '^CMAKE_CUDA_COMPILER:[A-Z]+=/' build/release/CMakeCache.txt 2>/dev/null; then
    echo "cuda: skipped, nvcc is not installed"
    skipped=$((skipped + 1))
  elif scripts/kernel_resources.sh build/release; then
    passed=$((passed + 1))
  else
    fail "cuda: scripts/kernel_resources.sh"
  fi
fi
if wanted format; then
  echo "== format"
  if ! output="$(scripts/format.sh --check 2>&1)"; then
    fail "format: run scripts/format.sh"
  elif [[ $output != *skipped* ]]; then
    passed=$((passed + 1))
  fi
  [[ -z $output ]] || echo "$output"
  if scripts/kernels_table.sh --check; then
    passed=$((passed + 1))
  else
    fail "format: run scripts/kernels_table.sh"
  fi
fi
wanted asan && run_preset asan -LE slow
if wanted tsan; then
  # ThreadSanitizer of g++ 12 and 14 stops where addresses are randomised over more than 28 bits.
  launcher=(setarch -R)
  run_preset tsan -LE slow -E '^(attention|matmul)_test$' # of the kernels those that take many minutes
fi

echo
for failure in "${failures[@]}"; do echo "FAILED  $failure"; done
echo "stages: ${stages[*]}; $skipped skipped; $((SECONDS - begin)) s"
echo "$passed passed, $failed failed"
((failed == 0))
