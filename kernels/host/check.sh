#!/usr/bin/env bash
# Compiles the kernels for the host and runs their tests, then shows that planted bugs are caught.
# Usage: check.sh [build folder]. With NVCC set to a compiler, the kernels are also compiled for devices.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-$(mktemp -d)}
flags=(-std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas)

# Folder, then further flags.
compile() {
  local to=$build/$1 source
  mkdir -p "$to"
  for source in *.cu host/*.cpp; do
    g++ "${flags[@]}" "${@:2}" -x c++ -c "$source" -o "$to/$(basename "$source").o"
  done
  g++ "$to"/*.o -o "$to/test"
}

compile plain
"$build/plain/test"

"$build/plain/test" --list | while read -r line; do
  grep -qF "$line" README.md || { echo "README.md lacks the row: $line" >&2; exit 1; }
done

compile planted -DPLANTED_BUGS
"$build/planted/test" similarity 0 >/dev/null
caught=0
for bug in "1 forward" "2 forward" "3 forward" "4 forward" "5 forward" "6 forward" \
  "2 backward" "3 backward" "7 backward" "8 decode" "9 similarity" "10 backward" "11 layer" "12 layer" "13 layer"; do
  read -r number group <<<"$bug"
  if "$build/planted/test" "$group" "$number" >"$build/planted/out" 2>&1; then
    echo "bug $number went unseen by: $group" >&2
    exit 1
  fi
  echo "bug $number: $(grep -m 1 -v ' checks, ' "$build/planted/out")"
  caught=$((caught + 1))
done
echo "$caught planted bugs caught"

[[ -n ${NVCC:-} ]] || exit 0
for source in *.cu; do
  "$NVCC" -std=c++17 -ptx -arch=sm_80 "$source" -o "$build/${source%.cu}.sm_80.ptx"
  for target in 80 90a; do
    "$NVCC" -std=c++17 -cubin -gencode "arch=compute_$target,code=sm_$target" -Xptxas -v "$source" \
      -o "$build/${source%.cu}.sm_$target.cubin" 2>"$build/${source%.cu}.sm_$target.txt"
  done
done
awk '/Compiling entry/ { split($0, a, "\047"); name = a[2]; target = a[4] }
  /spill stores/ { spill = $5 + $9 } /Used/ { n += 1; if (spill) print target, name, $5, "registers,", spill, "bytes spilled" }
  END { print n, "compilations" }' "$build"/*.txt
