// SPDX-License-Identifier: Apache-2.0
// The part of ./dev lab backends that runs in a guest: probe PART; and what a backend is to the kernel: probe map TEXT
#include <fcntl.h>
#include <fmt/format.h>

#include <cstdio>
#include <string_view>

#include "lab/backends/probe/checks.hpp"

namespace {

/// Makes a backend, and says what /proc/self/smaps and the descriptor's flags show of it; or that it was refused.
int show_mapping(const std::string& text) {
    const auto backend = lab::make_backend(text);
    if (!backend) {
        fmt::print("refused: {}\n", backend.error().message());
        return 0;
    }
    const std::string smaps = lab::smaps_of((*backend)->memory()->bytes());
    const std::size_t blank = smaps.find(' ');
    const auto file = (*backend)->memory()->file();
    const int flags = file ? ::fcntl(file->fd.number(), F_GETFL) & O_ACCMODE : -1;
    const char* opened = flags == O_RDWR ? "read-write" : flags == O_RDONLY ? "read" : "nothing";
    const bool is_rom = (*backend)->mode().kind == guestmem::RegionKind::rom;
    fmt::print("made: {} {} {} {}\n", smaps.substr(blank + 1, 4), lab::number_in(smaps, "Size") * 1024,
               opened, is_rom ? "rom" : "ram");
    return 0;
}

}  // namespace

int main(int count, char** words) {
    if (count == 3 && std::string_view{words[1]} == "map") return show_mapping(words[2]);
    const std::string_view part = count == 2 ? words[1] : "";
    lab::Checks checks{std::string{part}};
    if (part == "numa") {
        lab::check_numa(checks);
    } else if (part == "physical") {
        lab::check_physical(checks);
    } else if (part == "huge") {
        lab::check_huge(checks);
    } else if (part == "memory") {
        lab::check_memory(checks);
    } else if (part == "cgroup-v1") {
        lab::check_cgroup(checks, 1);
    } else if (part == "cgroup-v2") {
        lab::check_cgroup(checks, 2);
    } else {
        std::fputs("usage: probe numa | physical | huge | memory | cgroup-v1 | cgroup-v2 | map BACKEND\n",
                   stderr);
        return 2;
    }
    checks.end();
    return 0;
}
