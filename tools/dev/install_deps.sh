#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# install_deps.sh GROUP...: makes sure that the Debian packages of these groups are there. As root it installs what is
# missing; anybody else gets the command to run, and exit status 1.
set -euo pipefail

packages_of() {
  case "$1" in
    build) echo cmake make ninja-build gcc g++ pkg-config nlohmann-json3-dev libxxhash-dev libcli11-dev libfmt-dev python3 python3-venv ;;
    test) echo libboost-context-dev libgtest-dev libeigen3-dev libutf8proc-dev python3 python3-pycparser binutils qemu-user ;;
    demo) echo libgtest-dev libeigen3-dev libutf8proc-dev python3 python3-venv debian-faq ;; # GoogleTest to configure
    bench) echo libbenchmark-dev libdnnl-dev python3 python3-venv ;;
    python) echo python3 python3-venv binutils ;;
    docs) echo doxygen python3 python3-venv ;;
    lint) echo clang-format-14 clang-tidy-14 shellcheck python3 python3-venv python3-pycparser git ;;
    full) echo googletest g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user ;;
    *)
      echo "install_deps.sh: unknown group '$1'; expected build, test, demo, python, bench, docs, lint or full" >&2
      exit 2
      ;;
  esac
}

if ! command -v dpkg-query >/dev/null; then
  echo "install_deps.sh: no dpkg here; make sure yourself that the tools behind these Debian packages are installed:" >&2
  for group in "$@"; do packages_of "$group" >&2; done
  exit 0
fi

wanted=()
for group in "$@"; do
  read -r -a packages <<<"$(packages_of "$group")"
  wanted+=("${packages[@]}")
done
# "ii" is installed; a virtual package or one that was only configured away is not.
installed=" $({ dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${wanted[@]}" 2>/dev/null || true; } |
  awk '$1 == "ii" {print $2}' | tr '\n' ' ') "
missing=()
for package in "${wanted[@]}"; do
  [[ $installed == *" $package "* || " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "int8q needs Debian packages that are not installed. Run, then try again:" >&2
  echo "  sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
