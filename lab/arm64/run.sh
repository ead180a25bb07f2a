#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ./dev lab arm64: a cross build of everything and the unit tests under qemu-user. Everything it makes is in
# build/lab-arm64: apt/ (private views of apt), host/ and target/ (unpacked packages), bin/ (the tools), cmake/
# (the build). Removing that folder removes all of it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly source_dir=$PWD
readonly lab=$source_dir/build/lab-arm64
readonly jobs=${GUESTMEM_JOBS:-$(nproc)}

say() {
    if [[ -t 1 ]]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi
}

die() {
    printf 'lab arm64: %s\n' "$*" >&2
    exit 1
}

check_machine() {
    local architecture tool
    for tool in dpkg apt-get dpkg-deb python3 flock; do
        command -v "$tool" >/dev/null || die "there is no $tool on this machine (on Debian, ./dev setup helps)"
    done
    architecture=$(dpkg --print-architecture)
    [[ $architecture != arm64 ]] || die "this machine is arm64: ./dev test is the test"
    [[ $architecture == amd64 ]] || die "no cross compiler is known for a host of architecture $architecture"
}

# unpack GROUP ARCHITECTURE: a group of packages.txt, unpacked into a folder of that name.
unpack() {
    python3 lab/apt_view.py --packages lab/arm64/packages.txt --group "$1" --architecture "$2" \
        --view "$lab/apt/$1" --into "$lab/$1"
}

fetch() {
    say "tools and libraries from the Debian archive"
    unpack host amd64
    unpack target arm64
}

# The unpacked programs need the unpacked libraries; a wrapper keeps that from everything else.
make_tools() {
    local tool
    mkdir -p "$lab/bin"
    cat >"$lab/bin/tool" <<END
#!/bin/sh
LD_LIBRARY_PATH='$lab/host/usr/lib/x86_64-linux-gnu' exec "$lab/host/usr/bin/\${0##*/}" "\$@"
END
    chmod +x "$lab/bin/tool"
    for tool in "$lab"/host/usr/bin/{aarch64-linux-gnu-*,cmake,ctest,ninja,pkg-config}; do
        ln -sfn tool "$lab/bin/$(basename "$tool")"
    done
}

build() {
    local -a options=(-G Ninja "-DCMAKE_MAKE_PROGRAM=$lab/bin/ninja" -DCMAKE_BUILD_TYPE=RelWithDebInfo
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1" -DGUESTMEM_DEVELOPER=ON "-DGUESTMEM_LAB=$lab"
        "-DCMAKE_TOOLCHAIN_FILE=$source_dir/lab/arm64/toolchain.cmake")
    local -a quiet=()
    [[ -t 1 ]] || quiet=(-- --quiet)
    say "cross build"
    "$lab/bin/cmake" -S . -B "$lab/cmake" --log-level=WARNING "${options[@]}" >/dev/null
    "$lab/bin/cmake" --build "$lab/cmake" -j "$jobs" "${quiet[@]}"
}

# The patterns of not-run.txt as one regular expression.
not_run() {
    awk '/^[^#]/ { printf "%s%s", separator, $1; separator = "|" }' lab/arm64/not-run.txt
}

# The tests whose names match a pattern, one per line.
tests_named() {
    "$lab/bin/ctest" --test-dir "$lab/cmake" --show-only -R "$1" | sed -n 's/^ *Test *#[0-9]*: //p'
}

list_not_run() {
    local pattern colon reason name
    while read -r pattern colon reason; do
        [[ $pattern != '#'* ]] || continue
        while read -r name; do printf '      %s: %s\n' "$name" "$reason"; done < <(tests_named "$pattern")
    done <lab/arm64/not-run.txt
}

run_tests() {
    say "these tests do not run under qemu-user:"
    list_not_run
    say "unit tests under qemu-user"
    # A process that a test leaves behind does not keep the lock.
    python3 tests/house/run_ctest.py "$lab/cmake" \
        "$lab/bin/ctest" --test-dir "$lab/cmake" --output-on-failure --no-tests=error --timeout 300 -j "$jobs" \
        --exclude-regex "$(not_run)" 9>&-
}

check_machine
mkdir -p "$lab"
exec 9>"$lab/lock"
flock --wait 600 9 || die "another run has held $lab/lock for 600 s"
fetch
make_tools
build
run_tests
