// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/capture_script.hpp"

#include <fmt/format.h>

#include <string_view>

#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/capture_rules.hpp"

namespace guestmem::dma {
namespace {

constexpr std::string_view head = R"sh(#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes from this machine what shows who can reach what memory by DMA: the files that are listed at the end, each with
# its reason, and nothing else. Serial numbers, MAC addresses and other words of the command line are left out.
# usage: sh capture.sh OUT.tar [ROOT]
# Run it as root to have all of it.
set -u
LC_ALL=C
export LC_ALL
out=${1:-}
root=${2:-}
root=${root%/}
if [ -z "$out" ]; then
    echo "usage: sh capture.sh OUT.tar [ROOT]" >&2
    exit 2
fi
case $out in
    /*) ;;
    *) out=$PWD/$out ;;
esac
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/tree" || exit 1
missed=0

# place FILE: $to is where it goes
place() {
    to=$work/tree${1#"$root"}
    [ -d "${to%/*}" ] || mkdir -p "${to%/*}"
}

# take FILE: its bytes go to $to
take() {
    cat "$1" > "$to" 2> /dev/null && return 0
    rm -f "$to"
    missed=$((missed + 1))
    echo "not readable: $1" >&2
    return 1
}

file() {
    for f in "$root"/$1; do
        [ -f "$f" ] || continue
        place "$f"
        take "$f" || continue
    done
}

link() {
    for f in "$root"/$1; do
        [ -h "$f" ] || continue
        target=$(readlink "$f") || continue
        while :; do
            case $target in
                /*) target=${target#/} ;;
                ../*) target=${target#../} ;;
                *) break ;;
            esac
        done
        [ -n "$target" ] || continue
        place "$f"
        ln -s "$target" "$to"
    done
}

# Where bytes of one specimen are in configuration space: offset and count.
serial_numbers='
{ for (i = 1; i <= NF; i++) b[n++] = $i }
END {
    if (n < 256) exit
    at = b[b[14] % 128 == 2 ? 20 : 52]
    at -= at % 4
    while (at >= 64 && !(at in seen) && b[at] != 255) {
        seen[at] = 1
        if (b[at] == 3) show(at + 4, 4)
        at = b[at + 1]
        at -= at % 4
    }
    at = 256
    while (at >= 256 && at + 4 <= n && !(at in seen)) {
        seen[at] = 1
        sum = b[at] + b[at + 1] + b[at + 2] + b[at + 3]
        if (sum == 0 || sum == 1020) exit
        if (b[at] == 3 && b[at + 1] == 0) show(at + 4, 8)
        at = b[at + 3] * 16 + int(b[at + 2] / 16)
        at -= at % 4
    }
}
function show(first, count) {
    if (first + count > n) count = n - first
    if (count > 0) print first, count
}'

configuration() {
    for f in "$root"/$1; do
        [ -f "$f" ] || continue
        place "$f"
        take "$f" || continue
        od -An -v -tu1 "$to" | awk "$serial_numbers" | while read -r first count; do
            dd if=/dev/zero of="$to" bs=1 seek="$first" count="$count" conv=notrunc 2> /dev/null
        done
    done
}

device_tree() {
    [ -f "$root/$1" ] || return 0
    if [ "${DEVICE_TREE:-}" = 1 ]; then
        file "$1"
    else
        echo "left out: $root/$1: it can hold serial numbers and MAC addresses; DEVICE_TREE=1 takes it" >&2
    fi
}

command_line() {
    [ -f "$root/$1" ] || return 0
    place "$root/$1"
    take "$root/$1" || return 0
    kept=
    set -f
    for word in $(cat "$to"); do
        case ${word#\"} in
            --) break ;;
            @KEPT@) kept="$kept${kept:+ }$word" ;;
        esac
    done
    set +f
    printf '%s\n' "$kept" > "$to"
}

memory_total() {
    [ -f "$root/$1" ] || return 0
    place "$root/$1"
    sed -n 's/^MemTotal:[[:blank:]]*/MemTotal: /p' "$root/$1" > "$to"
}

)sh";

constexpr std::string_view tail = R"sh(
if [ -z "$root" ]; then
    place "/@PAGE@"
    getconf PAGESIZE > "$to" 2> /dev/null || echo 4096 > "$to"
fi
[ "$missed" = 0 ] || echo "$missed files could not be read: run it as root to have them" >&2
cd "$work/tree" || exit 1
tar --owner=0 --group=0 --numeric-owner -cf "$out" . 2> /dev/null || tar -cf "$out" .
)sh";

std::string_view function_of(CaptureKind kind) {
    switch (kind) {
        case CaptureKind::file: return "file";
        case CaptureKind::link: return "link";
        case CaptureKind::configuration: return "configuration";
        case CaptureKind::device_tree: return "device_tree";
        case CaptureKind::command_line: return "command_line";
        case CaptureKind::memory_total: return "memory_total";
    }
    return "file";
}

std::string with(std::string_view text, std::string_view mark, std::string_view value) {
    std::string result{text};
    result.replace(result.find(mark), mark.size(), value);
    return result;
}

}  // namespace

std::string capture_script() {
    std::string kept;
    for (const std::string_view beginning : kept_beginnings)
        kept += fmt::format("{}{}*", kept.empty() ? "" : " | ", beginning);
    std::string script = with(head, "@KEPT@", kept);
    for (const CapturePattern& pattern : capture_patterns())
        script += fmt::format("{} '{}'  # {}\n", function_of(pattern.kind), pattern.path, pattern.why);
    return script + with(tail, "@PAGE@", page_bytes_path);
}

}  // namespace guestmem::dma
