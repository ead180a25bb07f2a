// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/plan.hpp"
#include "guestmem/mem/backends/size_text.hpp"

/// Worlds in which a backend is planned, each in a line of text: options in QEMU's words and what is not as usual.
///
/// Concepts: what a text does not say is good: a machine with plenty of everything, and a file that is there.
/// Contract: a word that is unknown fails the test that says it.
/// Threads: any.
/// Example:
///     EXPECT_EQ(codes_of("file,share=on|tmpfs,disk-free=1M"), Codes{"disk-too-small"});

namespace guestmem::testing {

inline constexpr std::uint64_t mib = std::uint64_t{1} << 20;
inline constexpr std::uint64_t gib = std::uint64_t{1} << 30;

/// All that a plan follows from.
struct World {
    BackendOptions options;
    MachineFacts machine;
    FileFactsBefore file;
};

inline void be_tmpfs(World& w) { w.file.file_system = {"tmpfs", 4096, std::nullopt, false, true}; }
inline void be_hugetlbfs(World& w) { w.file.file_system = {"hugetlbfs", 2 * mib, std::nullopt, true, true}; }

/// 4 MiB on a machine with plenty of everything, and a file of 16 MiB on a disk.
inline World good_world(BackendKind kind) {
    World w;
    w.options = {.kind = kind, .id = "m", .size_bytes = 4 * mib};
    w.machine.limits.available_bytes = 64 * gib;
    w.machine.limits.commit_left_bytes = 64 * gib;
    w.machine.limits.cgroup_path = "/vms";
    w.machine.huge_pages = {{2 * mib, 64, 64, 0, 0, 0}, {gib, 4, 4, 0, 0, 0}};
    w.machine.default_huge_page_bytes = 2 * mib;
    w.machine.nodes.online = {0};
    w.file.folder = {true, FileKind::folder, 0, 0, 1, 2, true, true};
    if (kind == BackendKind::file) {
        w.options.mem_path = "/vm/a.ram";
        w.file.path = {true, FileKind::regular, 16 * mib, 0, 1, 7, true, true};
        w.file.file_system = {"ext4", 4096, 100 * gib, false, false};
    } else if (kind == BackendKind::physical) {
        w.options.mem_path = "/dev/mem";
        w.file.path = {true, FileKind::character_device, 0, 0, 1, 7, true, true};
        be_tmpfs(w);
    }
    return w;
}

/// What a test changes of it, in a word.
struct Fact {
    std::string_view name;
    void (*apply)(World& w, std::uint64_t value);
};
inline constexpr std::array<Fact, 32> facts{{
    {"no-path", [](World& w, std::uint64_t) { w.options.mem_path.clear(); }},
    {"size", [](World& w, std::uint64_t value) { w.options.size_bytes = value; }},
    {"absent", [](World& w, std::uint64_t) { w.file.path = {}; }},
    {"folder", [](World& w, std::uint64_t) { w.file.path = w.file.folder; }},
    {"no-folder", [](World& w, std::uint64_t) { w.file.path = w.file.folder = {}; }},
    {"regular", [](World& w, std::uint64_t) { w.file.path.kind = FileKind::regular; }},
    {"device", [](World& w, std::uint64_t) { w.file.path.kind = FileKind::character_device; }},
    {"disk", [](World& w, std::uint64_t) { w.file.path.kind = FileKind::block_device; }},
    {"socket", [](World& w, std::uint64_t) { w.file.path.kind = FileKind::other; }},
    {"length", [](World& w, std::uint64_t value) { w.file.path.size_bytes = value; }},
    {"allocated", [](World& w, std::uint64_t value) { w.file.path.allocated_bytes = value; }},
    {"unreadable", [](World& w, std::uint64_t) { w.file.path.is_readable = false; }},
    {"unwritable", [](World& w, std::uint64_t) { w.file.path.is_writable = false; }},
    {"folder-unwritable", [](World& w, std::uint64_t) { w.file.folder.is_writable = false; }},
    {"broken-link", [](World& w, std::uint64_t) { w.file.path = {}, w.file.is_broken_link = true; }},
    {"outside", [](World& w, std::uint64_t value) { w.file.outside_data_bytes = value; }},
    {"proc",
     [](World& w, std::uint64_t) { w.file.file_system = {"proc", 4096, std::nullopt, false, false}; }},
    {"tmpfs", [](World& w, std::uint64_t) { be_tmpfs(w); }},
    {"hugetlbfs", [](World& w, std::uint64_t) { be_hugetlbfs(w); }},
    {"disk-free", [](World& w, std::uint64_t value) { w.file.file_system.value().free_bytes = value; }},
    {"default-huge", [](World& w, std::uint64_t value) { w.machine.default_huge_page_bytes = value; }},
    {"huge-free", [](World& w, std::uint64_t value) { w.machine.huge_pages.at(0).count_free = value; }},
    {"available", [](World& w, std::uint64_t value) { w.machine.limits.available_bytes = value; }},
    {"cgroup", [](World& w, std::uint64_t value) { w.machine.limits.cgroup_headroom_bytes = value; }},
    {"always", [](World& w, std::uint64_t) { w.machine.limits.overcommit = Overcommit::always; }},
    {"never", [](World& w, std::uint64_t) { w.machine.limits.overcommit = Overcommit::never; }},
    {"commit", [](World& w, std::uint64_t value) { w.machine.limits.commit_left_bytes = value; }},
    {"fsize", [](World& w, std::uint64_t value) { w.machine.limits.file_size_bytes = value; }},
    {"two-nodes", [](World& w, std::uint64_t) { w.machine.nodes.online = {0, 1}; }},
    {"total", [](World& w, std::uint64_t value) { w.machine.limits.total_bytes = value; }},
    {"node", [](World& w, std::uint64_t value) { w.machine.node_available_bytes[0] = value; }},
    {"as", [](World& w, std::uint64_t value) { w.machine.limits.address_space_bytes = value; }},
}};

/// "file,share=on|absent,disk-free=1M": options in QEMU's words, and facts behind the bar. What is not said is good.
inline World world_of(const std::string& text) {
    const std::size_t bar = std::min(text.find('|'), text.size());
    std::string options = "memory-backend-" + text.substr(0, bar) + ",id=m";
    if (!options.contains(",size=")) options += ",size=4M";
    const bool has_path = text.starts_with("file") || text.starts_with("physical");
    if (has_path) options += text.starts_with("file") ? ",mem-path=/vm/a.ram" : ",mem-path=/dev/mem";
    auto parsed = parse_backend(options);
    EXPECT_TRUE(parsed) << options << (parsed ? "" : ": " + parsed.error().message());
    if (!parsed) return {};
    World w = good_world(parsed->kind);
    w.options = *parsed;
    std::istringstream words{text.substr(std::min(bar + 1, text.size()))};
    for (std::string word; std::getline(words, word, ',');) {
        const std::size_t equals = word.find('=');
        const auto* fact = std::ranges::find(facts, std::string_view{word}.substr(0, equals), &Fact::name);
        EXPECT_NE(fact, facts.end()) << word;
        const std::uint64_t value =
            equals == std::string::npos ? 0 : parse_qemu_size(word.substr(equals + 1)).value();
        if (fact != facts.end()) fact->apply(w, value);
    }
    return w;
}

inline BackendPlan plan_of(const World& w) { return plan_backend(w.options, w.machine, w.file); }
inline BackendPlan plan_of(const std::string& text) { return plan_of(world_of(text)); }

using Codes = std::vector<std::string>;
inline Codes codes_of(const BackendPlan& plan) {
    Codes codes;
    for (const Problem& problem : plan.problems.all()) codes.emplace_back(problem.code);
    return codes;
}
inline Codes codes_of(const std::string& text) { return codes_of(plan_of(text)); }

}  // namespace guestmem::testing
