#!/usr/bin/env bash
# Everything that needs a GPU, in stages that leave their results as a few flat files; and a bundle to
# run them on a machine that has a GPU, the CUDA toolkit, cmake and a compiler, and nothing else.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

usage() {
  cat <<'HELP'
usage: scripts/gpu.sh STAGE [--out FOLDER] [--only REGEX]
       scripts/gpu.sh --list

On any machine where nvcc and scripts/setup.sh's packages are installed:
  build      builds the tests and benchmarks into build/release (in a bundle: the kernels' anew)
  bundle     builds, and packs them as FOLDER/orthofed-gpu-COMMIT.tar.xz (at most 40 MiB): programs,
             their libraries beside them, and what it takes to build changed kernels elsewhere

On a machine with a GPU, in a checkout after `build` or in an unpacked bundle:
  test       every test that runs on a GPU; a skipped case is a failed one
  sanitize   the kernels' tests under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
  bench      the benchmarks on the GPU
  peers      the same work in PyTorch (bench/peers), where python3 has torch

  --out      where the results go (default: build/gpu): STAGE.jsonl, one record a line with GPU, driver, commit
             and command, and STAGE.txt, what the programs said; at most 8 files in all
  --only     programs whose names match, for example --only '^(gelu|matmul)_'
  --list     what each stage would run here

OF_GPU_SECONDS bounds a stage (default 450). Results worth keeping go to bench/results/gpu-NAME-COMMIT/;
scripts/kernels_table.sh then names the GPU in docs/kernels.md. Exit status: 1 if something failed, 2 if
the stage cannot run here.
HELP
}

die() {
  echo "gpu: $*" >&2
  exit 2
}

stage='' out=build/gpu only=.
while (($# > 0)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --out | --only)
      (($# > 1)) || die "$1 needs a value (see scripts/gpu.sh --help)"
      if [[ $1 == --out ]]; then out=$2; else only=$2; fi
      shift ;;
    build | bundle | test | sanitize | bench | peers | --list)
      [[ -z $stage ]] || die "one stage at a time, not $stage and $1"
      stage=$1 ;;
    *) die "unknown argument '$1' (see scripts/gpu.sh --help)" ;;
  esac
  shift
done
[[ -n $stage ]] || { usage >&2; exit 2; }

bin=build/release/bin
manifest=MANIFEST.json # only a bundle has one
seconds=${OF_GPU_SECONDS-450}
begin=$SECONDS

commit() {
  if [[ -e $manifest ]]; then
    sed -nE 's/.*"commit": "([^"]*)".*/\1/p' "$manifest"
  else
    git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown
  fi
}

# Names of the tests that run on a GPU (in a bundle: those that are in it), and of the benchmarks.
tests() {
  if [[ -e $manifest ]]; then
    find "$bin" -maxdepth 1 -name '*_test' -printf '%f\n'
  else
    grep -rlE 'for_each_(device|gpu)|Device::cuda|have_gpu' tests/{kernels,engine,models,federation} \
      --include='*_test.cc' | sed -E 's|.*/(.*)\.cc|\1|'
  fi | grep -E "$only" | sort
}
kernel_tests() {
  tests | while read -r name; do
    [[ ! -e tests/kernels/$name.cc ]] || echo "$name"
  done
}
benches() {
  if [[ -e $manifest ]]; then
    find "$bin" -maxdepth 1 -name '*_bench' -printf '%f\n'
  else
    find bench -name '*_bench.cc' -printf '%f\n' | sed 's/\.cc$//'
  fi | grep -E "$only" | sort
}

# --- what is measured, and on what ------------------------------------------------------------------

gpu='' driver=''
need_gpu() {
  local line
  command -v nvidia-smi >/dev/null || die "no GPU here: nvidia-smi is not installed"
  line=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1) ||
    die "no GPU here: ${line%%$'\n'*}"
  line=${line%%$'\n'*}
  gpu=${line%, *} driver=${line##*, }
}

text() { # a JSON string
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"}
  printf '"%s"' "${s//[$'\n\t\r']/ }"
}

# record COMMAND FIELDS: a line of the stage's results
record() {
  printf '{"stage": "%s", "gpu": %s, "driver": "%s", "commit": "%s", "command": %s, %s}\n' \
    "$stage" "$(text "$gpu")" "$driver" "$of_commit" "$(text "$1")" "$2" >>"$out/$stage.jsonl"
}

# run LOG COMMAND...: within the stage's time; 124 says that it ran out.
run() {
  local log=$1 left=$((seconds - (SECONDS - begin)))
  shift
  ((left > 0)) || { echo "no time was left" >"$log"; return 124; }
  timeout "$left" "$@" >"$log" 2>&1 </dev/null
}

failed=0 passed=0
start_stage() {
  need_gpu
  of_commit=$(commit)
  mkdir -p "$out" || die "cannot write to $out"
  rm -f "$out/$stage".{jsonl,txt}
  work=$(mktemp -d) || exit
  trap 'rm -rf "$work"' EXIT
  echo "== $stage: $gpu, driver $driver, commit $of_commit"
}
end_stage() {
  ((passed + failed > 0)) || die "$stage: no program here has anything to run on a GPU"
  echo "$stage: $passed passed, $failed failed, $((SECONDS - begin)) s; $out/$stage.jsonl"
  ((failed == 0))
}
# verdict NAME OK LOG
verdict() {
  { echo "=== $1"; cat "$3"; } >>"$out/$stage.txt"
  if [[ $2 == yes ]]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED  $1 (see $out/$stage.txt)"
  fi
}

need_programs() {
  local name
  for name in "$@"; do
    [[ -x $bin/$name ]] || die "$bin/$name is not built: scripts/gpu.sh build"
  done
  (($# > 0)) || die "no program matches --only '$only'"
  # A bundle made on a newer system does not start on an older one.
  "$bin/$1" --help >/dev/null 2>"$work/start" || ! grep -q GLIBC "$work/start" ||
    die "this machine's C library is too old for the bundle's programs: scripts/gpu.sh build makes them anew"
}

# --- the stages -------------------------------------------------------------------------------------

stage_test() {
  local names name job jobs log status fields ok failures skips
  start_stage
  mapfile -t names < <(tests)
  need_programs "${names[@]}"
  # Several at a time: their CPU references take longer than the GPU.
  jobs=$((($(nproc) + 1) / 2))
  export OF_REQUIRE_GPU=1 OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 OF_SOURCE_DIR=$PWD
  for name in "${names[@]}"; do
    while (($(jobs -pr | wc -l) >= jobs)); do wait -n; done
    {
      job=$SECONDS
      run "$work/$name" "$bin/$name"
      echo "$? $((SECONDS - job))" >"$work/$name.status"
    } &
  done
  wait
  for name in "${names[@]}"; do
    log=$work/$name
    read -r status job <"$log.status"
    # "[  PASSED  ] 7 tests." and, where there are any, "[  SKIPPED ] 1 test, listed below:"
    count() { grep -oE "^\[  $1 +\] [0-9]+ test" "$log" | grep -oE '[0-9]+' || echo 0; }
    failures=$(count FAILED) skips=$(count SKIPPED) ok=yes
    ((status == 0 || failures > 0)) || failures=1
    ((failures == 0 && skips == 0)) || ok=no
    fields="\"test\": \"$name\", \"passed\": $(count PASSED), \"failed\": $failures, \"skipped\": $skips, "
    record "OF_REQUIRE_GPU=1 $bin/$name" "$fields\"exit\": $status, \"seconds\": $job"
    verdict "$name" "$ok" "$log"
  done
  end_stage
}

stage_sanitize() {
  local sanitizer names name tool status errors ok
  start_stage
  sanitizer=$(PATH=$PATH:${CUDA_HOME-/usr/local/cuda}/bin command -v compute-sanitizer) ||
    die "compute-sanitizer is not installed (it comes with the CUDA toolkit)"
  mapfile -t names < <(kernel_tests)
  need_programs "${names[@]}"
  export OF_REQUIRE_GPU=1 OF_TEST_DEVICES=cuda OMP_WAIT_POLICY=passive
  for tool in memcheck racecheck initcheck synccheck; do
    for name in "${names[@]}"; do
      run "$work/$name" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 "$bin/$name"
      status=$? ok=yes
      ((status == 0)) || ok=no
      # "ERROR SUMMARY: 2 errors", "RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
      errors=$(grep -oE 'SUMMARY: [0-9]+' "$work/$name" | tail -n 1 | grep -oE '[0-9]+' || echo null)
      record "OF_TEST_DEVICES=cuda compute-sanitizer --tool $tool $bin/$name" \
        "\"tool\": \"$tool\", \"test\": \"$name\", \"exit\": $status, \"errors\": $errors"
      verdict "$tool $name" "$ok" "$work/$name"
    done
  done
  end_stage
}

stage_bench() {
  local names name line status ok clocks
  start_stage
  mapfile -t names < <(benches)
  need_programs "${names[@]}"
  rm -f "$out/kernels.jsonl" # what bench/report.py reads
  for name in "${names[@]}"; do
    "$bin/$name" --benchmark_list_tests 2>/dev/null | grep -q /cuda || continue # has none for a GPU
    OF_BENCH_JSON=$out/kernels.jsonl OF_COMMIT=$of_commit \
      run "$work/$name" "$bin/$name" --benchmark_filter=/cuda --benchmark_format=csv
    status=$? ok=yes
    ((status == 0)) || ok=no
    while read -r line; do
      echo "$line"
      record "$bin/$name --benchmark_filter=/cuda" "\"missing\": $(text "${line#peer missing: }")"
    done < <(grep '^peer missing: ' "$work/$name")
    clocks=$(nvidia-smi --query-gpu=clocks.sm,power.draw --format=csv,noheader,nounits 2>/dev/null | head -n 1)
    # The header names the columns; a name is quoted, other cells are numbers or empty.
    while read -r line; do
      record "$bin/$name --benchmark_filter=/cuda" "$line, \"sm_mhz_and_watts_after\": $(text "$clocks")"
    done < <(awk -F , '
      /^name,/ { for (i = 1; i <= NF; ++i) { head[i] = $i; gsub(/"/, "", head[i]) } next }
      /^"/ && head[1] == "name" {
        line = ""
        for (i = 1; i <= NF; ++i) {
          if ($i == "" || head[i] ~ /^(cpu_time|label|error_)/) continue
          value = $i
          if (value !~ /^("|-?[0-9.]+(e[-+]?[0-9]+)?$)/) value = "\"" value "\""
          line = line (line == "" ? "" : ", ") "\"" head[i] "\": " value
        }
        print line
      }' "$work/$name")
    verdict "$name" "$ok" "$work/$name"
  done
  end_stage
}

# NAME COMMAND...: records each JSON line that the command prints.
peers_run() {
  local name=$1 line ok=yes
  shift
  run "$work/peers" "$@" || ok=no
  while read -r line; do
    [[ $line != \{*\} ]] || { line=${line#\{}; record "$*" "${line%\}}"; }
  done <"$work/peers"
  verdict "$name" "$ok" "$work/peers"
}

stage_peers() {
  local model strategy
  start_stage
  python3 -c 'import torch, timm, peft' 2>/dev/null || die "python3 has no torch, timm and peft: no peer to measure"
  export PYTHONDONTWRITEBYTECODE=1
  need_programs lora_step_bench
  # Both take the model, adapters and images that PyTorch leaves: whether they do the same work is seen in
  # first_loss and first_gradient_norm of their records.
  local peer=(python3 bench/peers/lora_step.py --device cuda --models tiny,base --modes bf16 --batch 256 --compile
    --attention --job "$work/job")
  peers_run lora_step.py "${peer[@]}"
  for model in tiny base; do
    for strategy in unmerged extended merged; do
      peers_run "lora_step_bench $model $strategy" "$bin/lora_step_bench" --device cuda --model "$model" \
        --job "$work/job/$model" --precision bf16 --strategy "$strategy" --steps 20 --profile
    done
    peers_run "lora_step_bench $model fp8" "$bin/lora_step_bench" --device cuda --model "$model" \
      --job "$work/job/$model" --precision bf16 --frozen fp8 --steps 20 --profile
  done
  end_stage
}

stage_build() {
  local options=(-DOF_CUDA=ON) targets
  mapfile -t targets < <(tests; benches)
  command -v nvcc >/dev/null || [[ -x ${CUDA_HOME-/usr/local/cuda}/bin/nvcc ]] || die "nvcc is not installed"
  command -v nvcc >/dev/null || export PATH=$PATH:${CUDA_HOME-/usr/local/cuda}/bin
  command -v cmake >/dev/null || die "cmake is not installed"
  if [[ -e $manifest ]]; then
    command -v ninja >/dev/null || options+=(-G 'Unix Makefiles')
    options+=(-DOF_ONEDNN=OFF -DCMAKE_PREFIX_PATH="$PWD/deps" -DCMAKE_CXX_FLAGS="-isystem $PWD/deps/include"
      -DCMAKE_EXE_LINKER_FLAGS="-L$PWD/deps/lib")
    mapfile -t targets < <(kernel_tests; find bench/kernels -name '*_bench.cc' -printf '%f\n' | sed 's/\.cc$//')
    find "$bin" -maxdepth 1 -type f -delete # a mixture of old and new programs would tell nothing
    sed -i -E 's/("commit": "[^"+]*)(\+rebuilt)?"/\1+rebuilt"/' "$manifest"
  fi
  ((${#targets[@]} > 0)) || die "no program matches --only '$only'"
  cmake --preset release "${options[@]}" >build/gpu.configure.log 2>&1 ||
    { cat build/gpu.configure.log; return 1; }
  cmake --build build/release --parallel "${CMAKE_BUILD_PARALLEL_LEVEL-$(nproc)}" --target "${targets[@]}"
}

stage_bundle() {
  local name file folder library of_commit size programs header
  [[ ! -e $manifest ]] || die "this is a bundle"
  stage_build || exit
  mapfile -t programs < <(tests; benches)
  of_commit=$(commit)
  work=$(mktemp -d) || exit
  trap 'rm -rf "$work"' EXIT
  folder=$work/orthofed-gpu-$of_commit
  mkdir -p "$folder/$bin/lib" "$folder"/deps/{include,lib/cmake/benchmark} "$out"

  # Programs, and the libraries they load but for the C library and the driver, which are the machine's.
  for name in "${programs[@]}"; do
    cp "$bin/$name" "$folder/$bin/" || exit
    strip "$folder/$bin/$name"
  done
  ldd "${programs[@]/#/$bin/}" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(ld-linux[^/]*|libc|libm|libdl|librt|libpthread|libresolv|libcuda)\.so[.0-9]*$' |
    while read -r library; do cp -L "$library" "$folder/$bin/lib/"; done

  # Sources of the kernels, and the headers and static libraries that building them takes.
  cp -r --parents CMakeLists.txt CMakePresets.json cmake kernels tests/CMakeLists.txt tests/support tests/kernels \
    tests/fixtures bench/CMakeLists.txt bench/support bench/kernels bench/peers \
    scripts/gpu.sh scripts/kernel_resources.sh "$folder"
  while read -r header; do
    mkdir -p "$folder/deps/${header%/*}"
    cp "/usr/$header" "$folder/deps/$header"
  done < <(find build/release -name '*.d' -exec cat {} + | cat - <(ninja -C build/release -t deps 2>/dev/null) |
    grep -oE '/usr/include/(gtest|benchmark|boost)/[^ :\\]+' | sed 's|^/usr/||' | sort -u)
  for library in gtest gtest_main boost_context benchmark; do
    for file in /usr/lib/lib$library.a /usr/lib/*/lib$library.a /usr/lib/*/lib$library.so; do
      if [[ -e $file ]]; then
        cp -L "$file" "$folder/deps/lib/"
        break
      fi
    done
  done
  cat >"$folder/deps/lib/cmake/benchmark/benchmarkConfig.cmake" <<'CMAKE'
find_package(Threads REQUIRED)
file(GLOB library ${CMAKE_CURRENT_LIST_DIR}/../../libbenchmark.*)
add_library(benchmark::benchmark UNKNOWN IMPORTED)
set_target_properties(benchmark::benchmark PROPERTIES
  IMPORTED_LOCATION ${library} INTERFACE_LINK_LIBRARIES Threads::Threads
  INTERFACE_INCLUDE_DIRECTORIES ${CMAKE_CURRENT_LIST_DIR}/../../../include)
CMAKE
  {
    echo '{'
    echo "  \"commit\": \"$of_commit\","
    echo "  \"nvcc\": $(text "$(sed -nE 's/.*CMAKE_CUDA_COMPILER_VERSION "([^"]*)".*/\1/p' build/release/CMakeFiles/*/CMakeCUDACompiler.cmake)"),"
    echo "  \"compiler\": $(text "$(c++ --version | head -n 1)"),"
    echo "  \"c_library\": $(text "$(ldd --version | head -n 1)"),"
    echo '  "programs": ['
    (cd "$folder/$bin" && sha256sum "${programs[@]}") |
      sed -E 's/^(\w+) +(.*)$/    {"name": "\2", "sha256": "\1"}/; $! s/$/,/'
    echo '  ]'
    echo '}'
  } >"$folder/$manifest"

  file=$out/orthofed-gpu-$of_commit.tar.xz
  # Programs share most of their code: a window as long as all of them finds that.
  tar -C "$work" -c "orthofed-gpu-$of_commit" | xz -T1 --lzma2=preset=6,dict=128MiB >"$file" || exit
  size=$(stat -c %s "$file")
  echo "bundle: ${#programs[@]} programs, $((size / 1024)) KiB: $file"
  if ((size > 40 * 1024 * 1024)); then
    echo "gpu: the bundle is larger than 40 MiB" >&2
    return 1
  fi
}

list() {
  local name
  echo "test: OF_REQUIRE_GPU=1, each of"
  tests | sed "s|^|  $bin/|"
  echo "sanitize: compute-sanitizer --tool memcheck, racecheck, initcheck, synccheck, OF_TEST_DEVICES=cuda, each of"
  kernel_tests | sed "s|^|  $bin/|"
  echo "bench: --benchmark_filter=/cuda, each of"
  benches | sed "s|^|  $bin/|"
  echo "peers: bench/peers/lora_step.py --device cuda"
  echo "  $bin/lora_step_bench --device cuda"
}

case "$stage" in
  --list) list ;;
  *) "stage_$stage" ;;
esac
