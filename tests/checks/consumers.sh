#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# consumers.sh SOURCE BUILD CC CXX: installs BUILD into a scratch prefix, moves the prefix, and builds and runs programs that
# know nothing but the installed package.
set -euo pipefail
source=$1 build=$2 cc=$3 cxx=$4
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
consumer=$source/tests/consumer

cmake --install "$build" --prefix "$scratch/first" >/dev/null
mv "$scratch/first" "$scratch/moved"
prefix=$scratch/moved
pc=$(dirname "$(find "$prefix" -name int8q.pc)")
lib=$(dirname "$(find "$prefix" -name libint8q.so.1)")

echo "-- find_package"
cmake -S "$consumer/find_package" -B "$scratch/find_package" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$scratch/find_package" >/dev/null
for program in "$scratch"/find_package/with_*; do "$program"; done

echo "-- pkg-config"
export PKG_CONFIG_PATH=$pc
read -r -a flags <<<"$(pkg-config --cflags --libs int8q)"
"$cc" -std=c99 -D_POSIX_C_SOURCE=200112L -o "$scratch/pkg" "$consumer/find_package/main.c" "${flags[@]}" -lm
LD_LIBRARY_PATH=$lib "$scratch/pkg"

echo "-- dlopen"
"$cxx" -std=c++17 -I "$prefix/include" -o "$scratch/dlopen" "$consumer/dlopen/main.cpp" -ldl
"$scratch/dlopen" "$lib/libint8q.so.1"

echo "-- dlopen without exceptions"
cat >"$scratch/stub.c" <<'END'
int int8q_negotiate(unsigned want, unsigned* got) { return (void)want, (void)got, 0; }
unsigned int8q_abi_version(void) { return 65536; }
END
"$cc" -shared -fPIC -o "$scratch/stub.so" "$scratch/stub.c"
"$cxx" -std=c++17 -fno-exceptions -I "$prefix/include" -o "$scratch/noexcept" "$consumer/noexcept/main.cpp" -pthread -ldl
"$scratch/noexcept" "$lib/libint8q.so.1" "$scratch/stub.so"

echo "-- translation units with different options"
part() {
  "$cxx" -std=c++17 -O0 -I "$prefix/include" -DPART="$1" "${@:2}" -c -o "$scratch/$1.o" "$consumer/options/part.cpp"
}
part thrown
part kept -fno-exceptions -DINT8Q_NO_EXCEPTIONS
part loaded_thrown -DINT8Q_HPP_DLOPEN
part loaded_kept -fno-exceptions -DINT8Q_NO_EXCEPTIONS -DINT8Q_HPP_DLOPEN
link_and_run() {
  "$cxx" -std=c++17 -O0 -o "$scratch/options" "$consumer/options/main.cpp" "$@" "$lib/libint8q.so.1" -ldl
  LD_LIBRARY_PATH=$lib "$scratch/options"
}
link_and_run "$scratch"/{thrown,kept,loaded_thrown,loaded_kept}.o
link_and_run "$scratch"/{loaded_kept,loaded_thrown,kept,thrown}.o

echo "-- the installed command"
(cd / && "$prefix/bin/int8q" --version)
