// SPDX-License-Identifier: Apache-2.0
// Moving a running machine's memory: copy everything, then what was written meanwhile, until little is left.
#include "guestmem/mem/dirty_log.hpp"

#include <cstdio>
#include <thread>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/dirty_pages.hpp"
#include "guestmem/mem/dirty_tracker.hpp"
#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/kvm_dirty.hpp"
#include "guestmem/mem/layout.hpp"

namespace {

using namespace guestmem;

constexpr std::uint64_t ram_bytes = 4 << 20;

/// Copies the pages from `memory` into `image`.
Result<void> copy_pages(MapView memory, const DirtyPages& pages, std::vector<std::byte>& image) {
    for (const DirtyRun& run : pages.runs()) {
        const auto read =
            memory.read_bytes(GuestAddress{run.offset}, std::span{image}.subspan(run.offset, run.size_bytes));
        if (!read) return read.error().to_error("copy dirty pages");
    }
    return {};
}

Result<void> run() {
    const auto memory = GM_TRY(HostMemory::create_anonymous({.size_bytes = ram_bytes}));
    const auto ram = GM_TRY(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = memory}));
    Layout layout;
    layout.add(ram);
    const auto map = GM_TRY(std::move(layout).freeze());

    std::thread device{[map] {
        GuestMemory view{map};
        for (std::uint64_t i = 0; i < 200000; ++i)
            GM_CHECK(
                view.write<std::uint64_t>(GuestAddress{i * 4104 % (ram_bytes - 8) & ~7ULL}, i).has_value());
    }};

    // On while the device writes: what it wrote before is in the first copy, what it writes after is in the log.
    std::vector<std::byte> image(ram_bytes);
    GM_TRY(ram->dirty().start(page_size_bytes));
    const auto copied = MapView{*map}.read_bytes(GuestAddress{0}, image);
    if (!copied) return copied.error().to_error("first copy");
    const DirtyPages first = GM_TRY(ram->dirty().harvest());
    GM_TRY(copy_pages(MapView{*map}, first, image));
    device.join();

    // KVM logs what its processors wrote; both are one harvest.
    std::vector<std::uint64_t> from_kvm(ram_bytes / page_size_bytes / 64);
    from_kvm[0] = 0x5;
    GM_TRY(merge_kvm_bitmap(from_kvm, {.tracker = ram->dirty(), .slot_bytes = ram_bytes}));
    const DirtyPages last = GM_TRY(ram->dirty().harvest());
    GM_TRY(copy_pages(MapView{*map}, last, image));
    GM_CHECK(MapView{*map}.compare(GuestAddress{0}, image).value() == std::strong_ordering::equal);
    std::printf("copied 4 MiB, then %llu and %llu pages; the images are equal\n",
                static_cast<unsigned long long>(first.count_dirty()),
                static_cast<unsigned long long>(last.count_dirty()));
    return ram->dirty().stop();
}

}  // namespace

int main() {
    const Result<void> done = run();
    if (!done) std::fprintf(stderr, "dirty_log: %s\n", done.error().message().c_str());
    return done ? 0 : 1;
}
