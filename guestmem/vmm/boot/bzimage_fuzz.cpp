// SPDX-License-Identifier: Apache-2.0
/// Fuzzes bzimage.hpp: any bytes as a Linux kernel, read, loaded into 4 MiB of RAM and given a zero page.
///
/// Asserts: a kernel that is loaded has all of its room in RAM, above 1 MiB and beside what was there; the entry is in
/// it; everything else is an error with a text.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/vmm/boot/bzimage.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

namespace {

using guestmem::GuestAddress;
using guestmem::GuestRange;

constexpr std::uint64_t ram_bytes = 0x400000;

guestmem::testing::TestMap& machine() {
    static guestmem::testing::TestMap map;
    static const bool is_made = (map.ram(0, ram_bytes), true);
    static_cast<void>(is_made);
    return map;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace guestmem::vmm;  // NOLINT(google-build-using-namespace): one function
    const BootFile file{"fuzzed", std::as_bytes(std::span{data, size})};
    const auto image = read_bzimage(file);
    if (!image) {
        GM_CHECK(!image.error().message().empty());
        return 0;
    }
    GM_CHECK(image->code_offset <= size && image->code_bytes <= size - image->code_offset);
    guestmem::MapView view{*machine().map()};
    const std::vector ram{*GuestRange::create(GuestAddress{0}, ram_bytes)};
    BootSpace space{ram};
    const GuestRange taken = *GuestRange::create(GuestAddress{0x280000}, 0x1000);
    space.block("taken", taken);
    const auto kernel = load_bzimage(*image, file, space, view);
    if (!kernel) {
        GM_CHECK(!kernel.error().message().empty());
        return 0;
    }
    const auto room = GuestRange::create(*kernel, image->room_bytes);
    GM_CHECK(room && ram[0].contains(*room) && !room->overlaps(taken));
    GM_CHECK(kernel->value() >= low_memory::first_megabyte && image->code_bytes <= image->room_bytes);
    const EntryState state = make_linux_entry(*image, *kernel);
    GM_CHECK(room->contains(GuestAddress{state.rip}));
    const std::vector<MemoryMapEntry> map{{ram[0], MapEntryKind::ram}};
    GM_CHECK(write_zero_page(*image, {.kernel = *kernel, .map = map}, view));
    return 0;
}
