#!/bin/sh
# Build llama.cpp's server, for this machine's processor, from the sources that the package llama-cpp-python carries.
#
#   sh bench/serve_llama.sh FOLDER [PYTHON]        makes FOLDER/bin/llama-server; a quarter of an hour on two cores
#
# Needs cmake, a C++ compiler, and pip with access to a package index. No web interface and no TLS is built in.
set -eu

version=0.3.36
folder=$1
python=${2:-python3}
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT

"$python" -m pip download --disable-pip-version-check --quiet --no-deps --no-binary llama-cpp-python \
    --dest "$sources" "llama-cpp-python==$version"
tar -xzf "$sources"/llama_cpp_python-*.tar.gz -C "$sources"
cmake -S "$sources"/llama_cpp_python-*/vendor/llama.cpp -B "$sources/build" \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_OPENSSL=OFF >"$sources/configure.log" 2>&1 || { cat "$sources/configure.log" >&2; exit 1; }
cmake --build "$sources/build" --target llama-server --parallel "${JOBS:-2}"
mkdir -p "$folder/bin"
cp "$sources/build/bin/llama-server" "$folder/bin/llama-server"
