// SPDX-License-Identifier: Apache-2.0
// A device behind an IOMMU: it says I/O virtual addresses, and reaches what its mappings permit, while they do.
#include "guestmem/mem/translated_memory.hpp"

#include <chrono>
#include <cstdio>
#include <map>
#include <memory>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/io_space.hpp"
#include "guestmem/mem/iotlb.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/translator.hpp"

namespace {

using namespace guestmem;
using namespace std::chrono_literals;

/// An IOMMU with a page table of its own: pages of 4 KiB.
class PageTable : public Translator {
public:
    void map(std::uint64_t io_page, GuestAddress guest, Permissions permissions) {
        pages_.insert_or_assign(io_page, Page{guest, permissions});
    }
    void unmap(std::uint64_t io_page) { pages_.erase(io_page); }

    AccessResult<Translation> translate(IoAddress address, Access access) override {
        const std::uint64_t number = address.value() / page_size_bytes;
        const auto page = pages_.find(number);
        if (page == pages_.end()) return AccessError{AccessReason::untranslated, access, address.value(), 0};
        if (!allows(page->second.permissions, access))
            return AccessError{AccessReason::denied, access, address.value(), 0};
        const auto range = IoRange::create(IoAddress{number * page_size_bytes}, page_size_bytes);
        const auto answer = Translation::create(*range, page->second.guest, page->second.permissions);
        if (!answer) return AccessError{AccessReason::translator_failed, access, address.value(), 0};
        return *answer;
    }

private:
    struct Page {
        GuestAddress guest;
        Permissions permissions;
    };
    std::map<std::uint64_t, Page> pages_;
};

Result<void> run() {
    const auto ram = GM_TRY(HostMemory::create_anonymous({.size_bytes = 1 << 20}));
    Layout layout;
    layout.add(GM_TRY(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = ram})));
    const std::shared_ptr<const MemoryMap> map = GM_TRY(std::move(layout).freeze());

    const auto iommu = std::make_shared<PageTable>();
    iommu->map(0x100, GuestAddress{0x8000}, Permissions::read_write);
    iommu->map(0x101, GuestAddress{0x3000}, Permissions::read);

    IoSpace space = GM_TRY(IoSpace::create(
        {.name = "net0", .translator = iommu, .dirty_window = IoRange::create(IoAddress{0x100000}, 0x2000)}));
    GM_TRY(space.dirty()->start(page_size_bytes));
    const std::unique_ptr<TranslatedMemory> memory = GM_TRY(space.make_memory("queue 0", map));

    // One I/O virtual page leads elsewhere than the next; reads go across.
    GM_CHECK(memory->write_le<std::uint32_t>(IoAddress{0x100ffc}, 7).has_value());
    GM_CHECK(MapView{*map}.read_le<std::uint32_t>(GuestAddress{0x8ffc}).value() == 7);
    GM_CHECK(memory->read<std::uint64_t>(IoAddress{0x100ffc}).has_value());
    for (const std::uint64_t address : {0x101000ULL, 0x200000ULL}) {
        const auto refused = memory->write_le<std::uint32_t>(IoAddress{address}, 1);
        GM_CHECK(!refused);
        std::printf("%s\n", refused.error().to_error("net0").message().c_str());
    }
    const DirtyPages written = GM_TRY(space.dirty()->harvest());
    std::printf("%llu page written, by I/O virtual address\n",
                static_cast<unsigned long long>(written.count_dirty()));

    // When invalidate() has returned, nobody uses the mapping any more.
    iommu->unmap(0x100);
    GM_TRY(space.invalidate(*IoRange::create(IoAddress{0x100000}, page_size_bytes), 1s));
    GM_CHECK(!memory->read<std::uint64_t>(IoAddress{0x100000}));
    const IoSpaceCounts counts = space.counts();
    std::printf("the translator was asked %llu times\n", static_cast<unsigned long long>(counts.questions));
    return {};
}

}  // namespace

int main() {
    const Result<void> done = run();
    if (!done) std::fprintf(stderr, "translated_memory: %s\n", done.error().message().c_str());
    return done ? 0 : 1;
}
