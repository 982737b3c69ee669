#!/usr/bin/env bash
# Installs the peers of the benchmarks and makes their weights, all of it under one folder. What is there already stays.
#
#   tests/performance/peers/install.sh PEERS WEIGHTS
#
# PEERS: the folder to fill, git-ignored. WEIGHTS: where the default decoder's GGUF file lies.
#   venv/                    OpenVINO and its generation, NNCF, ONNX Runtime, CTranslate2, cmake
#   llama.cpp/build/bin/     llama-batched-bench, -bench, -server, -quantize, -perplexity, compiled for this machine
#   binding/llama_cpp/       the declarations of its library for Python
#   weights/*.gguf           the default decoder in other types, each made from the published file
#   weights/openvino-*/      what OpenVINO makes of such a file
#
# PYTHON names the interpreter that the environment is made from.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
peers=$1 source_file=$2
python=${PYTHON:-python3}
tools="llama-batched-bench llama-bench llama-server llama-quantize llama-perplexity"
# Its own defaults of a release build; what isn't named here only leaves out downloads and what isn't used.
options="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

# Whether a step was done: its stamp holds what it was made from.
is_done() { [ "$(cat "$peers/.$1" 2>/dev/null)" = "$2" ]; }

command -v c++ >/dev/null || { echo "llama.cpp is compiled here: install a C++ compiler first (Debian: g++)." >&2; exit 1; }
[ -f "$source_file" ] || { echo "$source_file is not there: run make install first." >&2; exit 1; }
mkdir -p "$peers/weights"
peers=$(cd "$peers" && pwd)
source_file=$(cd "$(dirname "$source_file")" && pwd)/$(basename "$source_file")

wanted=$(cat "$here/requirements.txt")
if is_done venv "$wanted"; then
  say "The environment is there: $peers/venv"
else
  say "Making the environment in $peers/venv"
  rm -rf "$peers/venv"
  "$python" -m venv "$peers/venv"
  "$peers/venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps -r "$here/requirements.txt"
  "$peers/venv/bin/python" -m pip check
  echo "$wanted" >"$peers/.venv"
fi

wanted="$(cat "$here/llama_cpp.txt") $tools $options"
if is_done llama.cpp "$wanted"; then
  say "llama.cpp is there: $peers/llama.cpp/build/bin"
else
  say "Downloading the source of llama.cpp (77 MB)"
  rm -rf "$peers/download" "$peers/llama.cpp" "$peers/binding"
  "$peers/venv/bin/python" -m pip download -qq --disable-pip-version-check --no-deps --no-binary :all: \
    --require-hashes --dest "$peers/download" -r "$here/llama_cpp.txt"
  mkdir "$peers/llama.cpp" "$peers/binding"
  tar -xzf "$peers"/download/*.tar.gz -C "$peers/llama.cpp" --strip-components=3 --wildcards '*/vendor/llama.cpp'
  # Without the package's __init__, which brings a server and its dependencies.
  tar -xzf "$peers"/download/*.tar.gz -C "$peers/binding" --strip-components=1 --wildcards \
    '*/llama_cpp/llama_cpp.py' '*/llama_cpp/_ctypes_extensions.py'
  rm -r "$peers/download"
  say "Compiling llama.cpp for this machine (minutes)"
  PATH="$peers/venv/bin:$PATH" cmake -S "$peers/llama.cpp" -B "$peers/llama.cpp/build" -G Ninja \
    $options >"$peers/llama.cpp.log" 2>&1 || { tail -20 "$peers/llama.cpp.log" >&2; exit 1; }
  PATH="$peers/venv/bin:$PATH" nice -n 15 cmake --build "$peers/llama.cpp/build" -j "${JOBS:-2}" --target $tools \
    >>"$peers/llama.cpp.log" 2>&1 || { tail -20 "$peers/llama.cpp.log" >&2; exit 1; }
  echo "$wanted" >"$peers/.llama.cpp"
fi

# The published file is the only one there is of these weights: the others are made from its values. Its embedding lies
# there as Q8_0 and the rest as Q4_1, so each of these types holds nearly all that it holds.
for type in Q8_0 BF16 F32; do
  file="$peers/weights/$(basename "${source_file%.Q4_1.gguf}").$type.gguf"
  [ -f "$file" ] && { say "The weights are there: $file"; continue; }
  say "Writing the weights as $type"
  "$peers/llama.cpp/build/bin/llama-quantize" --allow-requantize "$source_file" "$file.part" "$type" 2 \
    >"$peers/weights/$type.log" 2>&1 || { tail -20 "$peers/weights/$type.log" >&2; exit 1; }
  mv "$file.part" "$file"
done
for type in Q8_0; do
  folder="$peers/weights/openvino-$type"
  [ -d "$folder" ] && { say "The weights are there: $folder"; continue; }
  say "Writing the weights as $type for OpenVINO"
  rm -rf "$folder.part"
  "$peers/venv/bin/python" -P "$here/openvino_convert.py" \
    "$peers/weights/$(basename "${source_file%.Q4_1.gguf}").$type.gguf" "$folder.part"
  mv "$folder.part" "$folder"
done
say "The peers are ready in $peers"
