// SPDX-License-Identifier: Apache-2.0
/// Fuzzes elf.hpp: any bytes as an ELF file, loaded into 64 KiB of RAM between two holes.
///
/// Asserts: what is loaded lies in claims that are in RAM, the entry with it; everything else is an error with a text;
/// no byte outside of the claims is touched.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/vmm/boot/elf.hpp"

namespace {

using guestmem::GuestAddress;
using guestmem::GuestRange;

constexpr std::uint64_t ram_base = 0x100000;
constexpr std::uint64_t ram_bytes = 0x10000;
constexpr std::byte untouched{0xa5};

void check_untouched(std::span<const std::byte> bytes, std::span<const guestmem::vmm::Claim> claims) {
    std::vector<std::byte> expected(bytes.begin(), bytes.end());
    for (const auto& claim : claims) {
        const std::size_t first = claim.range.base().value() - ram_base;
        std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(first), claim.range.size_bytes(),
                    untouched);
    }
    GM_CHECK(guestmem::testing::is_all(expected, untouched));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace guestmem::vmm;  // NOLINT(google-build-using-namespace): one function
    const BootFile file{"fuzzed", std::as_bytes(std::span{data, size})};
    const auto image = read_elf(file);
    if (!image) {
        GM_CHECK(!image.error().message().empty());
        return 0;
    }
    GM_CHECK(!image->segments.empty() && image->segments.size() <= max_elf_segments);
    static const auto bytes = std::make_shared<std::vector<std::byte>>(ram_bytes);
    std::ranges::fill(*bytes, untouched);
    guestmem::testing::TestMap map;
    map.add({.name = "ram",
             .base = GuestAddress{ram_base},
             .memory = guestmem::HostMemory::borrow(*bytes, guestmem::MapAccess::read_write, bytes).value()});
    guestmem::MapView view{*map.map()};
    const std::vector ram{*GuestRange::create(GuestAddress{ram_base}, ram_bytes)};
    BootSpace space{ram};
    const auto entry = load_elf(*image, file, space, view);
    for (const Claim& claim : space.claims()) GM_CHECK(ram[0].contains(claim.range));
    if (entry) {
        const auto holds = [&](const Claim& claim) { return claim.range.contains(*entry); };
        GM_CHECK(std::ranges::any_of(space.claims(), holds));
    }
    check_untouched(*bytes, space.claims());
    return 0;
}
