// SPDX-License-Identifier: Apache-2.0
// Pages on the nodes that were asked for. The guest has nodes 0, 1 and 2; node 2 has 64 MiB.
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>
#include <sstream>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "lab/backends/probe/checks.hpp"

namespace lab {
namespace {

using namespace guestmem;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;

/// How many pages stand on each node, as move_pages(2) answers; a page that is not there counts for its negative errno.
std::map<int, std::uint64_t> count_by_node(std::span<std::byte> bytes) {
    const std::size_t count = bytes.size() / page_size_bytes;
    std::vector<void*> pages(count);
    std::vector<int> nodes(count, -1);
    for (std::size_t i = 0; i < count; ++i) pages[i] = bytes.data() + i * page_size_bytes;
    std::map<int, std::uint64_t> counts;
    if (::syscall(SYS_move_pages, 0, count, pages.data(), nullptr, nodes.data(), 0) != 0) return counts;
    for (const int node : nodes) ++counts[node];
    return counts;
}

/// The line of /proc/self/numa_maps about the mapping.
std::string numa_maps_of(std::span<std::byte> bytes) {
    const std::string begin = fmt::format("{:x} ", reinterpret_cast<std::uintptr_t>(bytes.data()));
    std::istringstream lines(read_text("/proc/self/numa_maps"));
    for (std::string line; std::getline(lines, line);)
        if (line.starts_with(begin)) return line;
    return "no line in numa_maps";
}

std::string said(const std::map<int, std::uint64_t>& counts, const std::string& line) {
    std::string text;
    for (const auto& [node, count] : counts) text += fmt::format("{} pages on {}, ", count, node);
    return text + line;
}

struct Placement {
    std::string options;  ///< size=8M is added
    std::string policy;   ///< in the words of numa_maps
    std::map<int, std::uint64_t> pages;
};

/// The pages of 8 MiB are 2048.
void check_placement(Checks& checks, const Placement& row) {
    const auto backend = make_backend(row.options + ",id=m,size=8M");
    if (!backend) {
        checks.expect(false, row.options, backend.error().message());
        return;
    }
    const std::span<std::byte> bytes = (*backend)->memory()->bytes();
    if (row.options.find("prealloc=on") == std::string::npos) {
        const auto before = count_by_node(bytes);
        checks.expect(before.size() == 1 && before.begin()->first < 0,
                      row.options + ": no page is there before it is written", said(before, ""));
        auto map = map_of(**backend, 0);
        GuestMemory memory{*map};
        checks.expect(memory.fill(GuestAddress{0}, std::byte{'x'}, bytes.size()).has_value(),
                      row.options + ": all of it can be written through a view");
    }
    const auto counts = count_by_node(bytes);
    const std::string line = numa_maps_of(bytes);
    checks.expect(counts == row.pages && line.find(" " + row.policy + " ") != std::string::npos,
                  row.options + ": the kernel says the node of every page", said(counts, line));
}

/// Node 2 has less than was asked for, and the machine has more.
void check_small_node(Checks& checks, const std::string& type) {
    const std::string text = type + ",id=m,size=96M,host-nodes=2,policy=bind,prealloc=on";
    const std::uint64_t before =
        number_in(read_text("/sys/devices/system/node/node2/meminfo"), "Node 2 MemFree");
    std::string message = "no answer";
    std::string answer_path = "/tmp/answer";
    const std::string end = end_of_child([&] {
        const auto backend = make_backend(text);
        static_cast<void>(write_text(answer_path, backend ? "it was made" : backend.error().message()));
    });
    if (end.empty()) message = read_text(answer_path);
    static_cast<void>(::unlink(answer_path.c_str()));
    checks.expect(end.empty() && message != "it was made",
                  fmt::format("{}: prealloc on a node that has too little memory is an error", type),
                  end.empty() ? message : end);
    const std::uint64_t after =
        number_in(read_text("/sys/devices/system/node/node2/meminfo"), "Node 2 MemFree");
    checks.expect(after + 4096 >= before, fmt::format("{}: the node's memory is free again afterwards", type),
                  fmt::format("{} kB free before, {} kB after", before, after));
}

std::uint64_t free_huge_pages(int node) {
    return read_number(
        fmt::format("/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/free_hugepages", node));
}

/// Node 0 has 8 huge pages, node 1 has 4.
void check_huge_pages(Checks& checks) {
    const std::string type = "memory-backend-memfd,id=m,hugetlb=on,host-nodes=1,policy=bind,prealloc=on";
    if (!checks.expect(free_huge_pages(0) == 8 && free_huge_pages(1) == 4,
                       "nodes 0 and 1 have 8 and 4 huge pages",
                       fmt::format("{} and {}", free_huge_pages(0), free_huge_pages(1))))
        return;
    {
        const auto backend = make_backend(type + ",size=8M");
        checks.expect(backend && free_huge_pages(0) == 8 && free_huge_pages(1) == 0,
                      "huge pages come from the node that was asked for",
                      backend ? fmt::format("{} and {} are free", free_huge_pages(0), free_huge_pages(1))
                              : backend.error().message());
    }
    checks.expect(free_huge_pages(1) == 4, "they are back on that node when the backend is gone");
    const std::string end = end_of_child([&] {
        const auto backend = make_backend(type + ",size=16M");
        static_cast<void>(write_text("/tmp/answer", backend ? "it was made" : backend.error().message()));
    });
    const std::string answer = end.empty() ? read_text("/tmp/answer") : end;
    static_cast<void>(::unlink("/tmp/answer"));
    checks.expect(answer.starts_with("backend 'm'"), "more huge pages than the node has are an error",
                  answer);
    checks.expect(free_huge_pages(0) == 8 && free_huge_pages(1) == 4, "and all huge pages are free again");
}

void check_absent_node(Checks& checks) {
    const auto plan = make_plan("memory-backend-ram,id=m,size=8M,host-nodes=9,policy=bind");
    checks.expect(plan && plan->problems.has_refusal() &&
                      refusal_of(*plan).message().find("node 9") != std::string::npos,
                  "a node that is not there is refused by the plan, by its number",
                  plan ? refusal_of(*plan).message() : plan.error().message());
    checks.expect_error(make_backend("memory-backend-memfd,id=m,size=8M,host-nodes=0-3,policy=interleave"),
                        "node 3", "a list of which one node is not there is refused");
}

}  // namespace

void check_numa(Checks& checks) {
    checks.expect(read_text("/sys/devices/system/node/online") == "0-2\n", "the guest has three nodes",
                  read_text("/sys/devices/system/node/online"));
    const std::vector<Placement> rows = {
        {"memory-backend-ram,host-nodes=1,policy=bind,prealloc=on", "bind:1", {{1, 2048}}},
        {"memory-backend-ram,host-nodes=2,policy=bind", "bind:2", {{2, 2048}}},
        {"memory-backend-ram,share=on,host-nodes=1,policy=bind,prealloc=on", "bind:1", {{1, 2048}}},
        {"memory-backend-memfd,host-nodes=1,policy=bind,prealloc=on", "bind:1", {{1, 2048}}},
        {"memory-backend-memfd,host-nodes=2,policy=bind", "bind:2", {{2, 2048}}},
        {"memory-backend-memfd,share=off,host-nodes=1,policy=bind,prealloc=on", "bind:1", {{1, 2048}}},
        {"memory-backend-shm,host-nodes=2,policy=bind,prealloc=on", "bind:2", {{2, 2048}}},
        {"memory-backend-file,mem-path=/tmp,share=on,host-nodes=1,policy=bind,prealloc=on",
         "bind:1",
         {{1, 2048}}},
        {"memory-backend-ram,host-nodes=1,policy=preferred,prealloc=on", "prefer:1", {{1, 2048}}},
        {"memory-backend-memfd,host-nodes=2,policy=preferred", "prefer:2", {{2, 2048}}},
        {"memory-backend-ram,host-nodes=1-2,policy=preferred,prealloc=on", "prefer (many):1-2", {{1, 2048}}},
        {"memory-backend-memfd,host-nodes=0-1,policy=interleave,prealloc=on",
         "interleave:0-1",
         {{0, 1024}, {1, 1024}}},
        {"memory-backend-ram,host-nodes=0,host-nodes=2,policy=interleave",
         "interleave:0,2",
         {{0, 1024}, {2, 1024}}},
    };
    for (const Placement& row : rows) check_placement(checks, row);
    check_absent_node(checks);
    check_huge_pages(checks);
    check_small_node(checks, "memory-backend-ram");
    check_small_node(checks, "memory-backend-memfd");
}

}  // namespace lab
