// SPDX-License-Identifier: Apache-2.0
// <linux/virtio_ring.h> has a function that is not C++; this leaves it out.
// NOLINTNEXTLINE(readability-identifier-naming): the kernel's name
#define VIRTIO_RING_NO_LEGACY

#include "guestmem/mem/vhost_table.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/vhost.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

static_assert(sizeof(VhostRegion) == sizeof(vhost_memory_region));
static_assert(offsetof(VhostRegion, guest_phys_addr) == offsetof(vhost_memory_region, guest_phys_addr));
static_assert(offsetof(VhostRegion, memory_size) == offsetof(vhost_memory_region, memory_size));
static_assert(offsetof(VhostRegion, userspace_addr) == offsetof(vhost_memory_region, userspace_addr));
static_assert(offsetof(VhostRegion, mmap_offset) == offsetof(vhost_memory_region, flags_padding));

constexpr std::uint64_t page = 4096;

using RegionPtr = std::shared_ptr<const Region>;
using MapPtr = std::shared_ptr<const MemoryMap>;
using MemoryPtr = std::shared_ptr<const HostMemory>;

Fd some_file(std::uint64_t count_pages) {
    return create_sealed_memory({.name = "vhost test", .size_bytes = count_pages * page}).value();
}

MemoryPtr file_memory(std::uint64_t count_pages, FileMemoryOptions options = {}) {
    Fd file = some_file(count_pages);
    if (options.size_bytes == 0) options.size_bytes = count_pages * page - options.offset_bytes;
    return HostMemory::create_from_file(std::move(file), options).value();
}

RegionPtr region(RegionOptions options) { return Region::create(std::move(options)).value(); }

RegionPtr ram(std::uint64_t base, MemoryPtr memory, std::uint64_t offset_bytes = 0,
              std::uint64_t size_bytes = 0) {
    return region({.name = "ram",
                   .base = GuestAddress{base},
                   .size_bytes = size_bytes,
                   .memory = std::move(memory),
                   .memory_offset_bytes = offset_bytes});
}

/// Memory that is only ever looked at from outside.
MemoryPtr memory_at(std::uint64_t host, std::uint64_t size_bytes) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a pointer that nobody follows
    auto* const begin = reinterpret_cast<std::byte*>(host);
    return HostMemory::borrow({begin, size_bytes}, MapAccess::read_write, nullptr).value();
}

MapPtr map_of(const std::vector<RegionPtr>& regions, std::uint64_t granule_bytes = page) {
    Layout layout{{.granule_bytes = granule_bytes}};
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze().value();
}

VhostTable table_of(const std::vector<RegionPtr>& regions, VhostTableOptions options = {}) {
    return VhostTable::create(*map_of(regions), options).value();
}

std::uint64_t host_of(const Region& region) { return reinterpret_cast<std::uintptr_t>(region.host_base()); }

std::vector<VhostRegion> regions_in(const VhostTable& table) {
    std::vector<VhostRegion> regions;
    for (const VhostEntry& entry : table.entries()) regions.push_back(entry.region);
    return regions;
}

std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
    std::vector<std::byte> bytes;
    for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
    return bytes;
}

TEST(VhostTable, AnEntrySaysWhereARegionIsForTheGuestForUsAndInTheFile) {
    const MemoryPtr memory = file_memory(8, {.offset_bytes = 2 * page});
    const RegionPtr high = ram(0x1'0000'0000, memory, page, 3 * page);

    const VhostTable table = table_of({high});

    EXPECT_THAT(regions_in(table),
                ElementsAre(VhostRegion{0x1'0000'0000, 3 * page, host_of(*high), 3 * page}));
    ASSERT_EQ(table.fds().size(), 1U);
    EXPECT_EQ(table.fds()[0].number(), memory->file()->fd.number());
    EXPECT_THAT(table.entries()[0].parts, ElementsAre(high));
    EXPECT_TRUE(table.left_out().empty());
}

TEST(VhostTable, TheWireHasTheCountThePaddingAndTheEntriesInNativeOrder) {
    if constexpr (std::endian::native != std::endian::little)
        GTEST_SKIP() << "SKIPPED: the vector is little-endian";
    const VhostTable table = table_of({ram(0x1000, memory_at(0x7f00'0000'0000, 0x2000)),
                                       ram(0x1'0000'0000, memory_at(0x1122'3344'5000, 0x3000))},
                                      {.back_end = VhostBackEnd::kernel});

    EXPECT_EQ(table.encode(), bytes_of({
                                  2, 0,    0,    0,    0,    0,    0, 0,  // entries, padding
                                  0, 0x10, 0,    0,    0,    0,    0, 0,  // guest address
                                  0, 0x20, 0,    0,    0,    0,    0, 0,  // size
                                  0, 0,    0,    0,    0,    0x7f, 0, 0,  // user address
                                  0, 0,    0,    0,    0,    0,    0, 0,  // flags_padding
                                  0, 0,    0,    0,    1,    0,    0, 0,  // guest address
                                  0, 0x30, 0,    0,    0,    0,    0, 0,  // size
                                  0, 0x50, 0x44, 0x33, 0x22, 0x11, 0, 0,  // user address
                                  0, 0,    0,    0,    0,    0,    0, 0,  // flags_padding
                              }));
    EXPECT_EQ(VhostTable::encode_single({0x1000, 0x2000, 0x3000, 0x0102'0304'0506'0700}),
              bytes_of({
                  0, 0,    0, 0, 0, 0, 0, 0,  // padding
                  0, 0x10, 0, 0, 0, 0, 0, 0,  // guest address
                  0, 0x20, 0, 0, 0, 0, 0, 0,  // size
                  0, 0x30, 0, 0, 0, 0, 0, 0,  // user address
                  0, 7,    6, 5, 4, 3, 2, 1,  // mmap offset
              }));
}

TEST(VhostTable, TheWireOfAProcessHasTheOffsetOfEachRegionInItsFile) {
    const RegionPtr low = ram(0, file_memory(4), 0, 2 * page);
    const RegionPtr high = ram(16 * page, file_memory(4), 3 * page);

    const std::vector<std::byte> bytes = table_of({low, high}).encode();

    ASSERT_EQ(bytes.size(), 8U + 2 * 32U);
    std::array<std::uint64_t, 9> words{};
    std::memcpy(words.data(), bytes.data(), bytes.size());
    EXPECT_EQ(words, (std::array<std::uint64_t, 9>{2, 0, 2 * page, host_of(*low), 0, 16 * page, page,
                                                   host_of(*high), 3 * page}));
}

TEST(VhostTable, AnEmptyMapIsATableOfNothing) {
    const VhostTable table = table_of({});
    EXPECT_EQ(table.encode(), std::vector<std::byte>(8));
    EXPECT_TRUE(table.fds().empty());
}

TEST(VhostTable, WhatABackEndMustNotWriteIsLeftOutWithItsReason) {
    const RegionPtr device =
        region({.name = "uart", .base = GuestAddress{0}, .size_bytes = page, .kind = RegionKind::device});
    const MemoryPtr memory = file_memory(4);
    const RegionPtr rom =
        region({.name = "rom", .base = GuestAddress{16 * page}, .kind = RegionKind::rom, .memory = memory});
    const RegionPtr fixed = region(
        {.name = "fixed", .base = GuestAddress{32 * page}, .kind = RegionKind::read_only, .memory = memory});
    const RegionPtr main = ram(48 * page, memory);
    for (const VhostBackEnd back_end : {VhostBackEnd::process, VhostBackEnd::kernel}) {
        const VhostTable table = table_of({device, rom, fixed, main}, {.back_end = back_end});
        ASSERT_EQ(table.entries().size(), 1U);
        EXPECT_EQ(table.entries()[0].parts[0], main);
        ASSERT_EQ(table.left_out().size(), 3U);
        EXPECT_EQ(table.left_out()[0].region, device);
        EXPECT_EQ(table.left_out()[0].reason, VhostOmissionReason::device);
        EXPECT_EQ(table.left_out()[1].region, rom);
        EXPECT_EQ(table.left_out()[1].reason, VhostOmissionReason::not_writable);
        EXPECT_EQ(table.left_out()[2].region, fixed);
        EXPECT_EQ(table.left_out()[2].reason, VhostOmissionReason::not_writable);
    }
}

TEST(VhostTable, RamThatNobodyElseCanMapIsAnErrorOrLeftOut) {
    const RegionPtr anonymous = ram(0, HostMemory::create_anonymous({.size_bytes = page}).value());
    const RegionPtr copy = ram(16 * page, file_memory(4, {.sharing = MapSharing::private_copy}));

    const auto no_file = VhostTable::create(*map_of({anonymous}), {});
    ASSERT_FALSE(no_file);
    EXPECT_EQ(no_file.error().code(), Errc::unsupported);
    EXPECT_EQ(
        no_file.error().message(),
        "vhost table: region 'ram' (0x0 to 0xfff): it has no file that a back end could map; make it of a "
        "memfd, or leave it out");
    const auto no_share = VhostTable::create(*map_of({copy}), {});
    ASSERT_FALSE(no_share);
    EXPECT_THAT(no_share.error().message(), HasSubstr("(0x10000 to 0x13fff): it is a private copy"));

    const VhostTable without = table_of({anonymous, copy}, {.unmappable = VhostUnmappable::is_left_out});
    EXPECT_TRUE(without.entries().empty());
    ASSERT_EQ(without.left_out().size(), 2U);
    EXPECT_EQ(without.left_out()[0].reason, VhostOmissionReason::no_file);
    EXPECT_EQ(without.left_out()[1].reason, VhostOmissionReason::private_copy);

    const VhostTable kernel = table_of({anonymous, copy}, {.back_end = VhostBackEnd::kernel});
    EXPECT_EQ(kernel.entries().size(), 2U);
    EXPECT_TRUE(kernel.fds().empty());
}

TEST(VhostTable, TellsEveryReasonInWords) {
    EXPECT_EQ(to_string(VhostOmissionReason::device), "belongs to a device");
    EXPECT_EQ(to_string(VhostOmissionReason::not_writable), "must not be written");
    EXPECT_EQ(to_string(VhostOmissionReason::no_file), "has no file");
    EXPECT_EQ(to_string(VhostOmissionReason::private_copy), "is a private copy of its file");
}

TEST(VhostTable, RegionsThatContinueEachOtherAreOneEntry) {
    const MemoryPtr memory = file_memory(8);
    const RegionPtr first = ram(0, memory, 0, 2 * page);
    const RegionPtr second = ram(2 * page, memory, 2 * page, 3 * page);
    const RegionPtr third = ram(5 * page, memory, 5 * page, 3 * page);

    const VhostTable table = table_of({first, second, third});

    EXPECT_THAT(regions_in(table), ElementsAre(VhostRegion{0, 8 * page, host_of(*first), 0}));
    EXPECT_THAT(table.entries()[0].parts, ElementsAre(first, second, third));
}

TEST(VhostTable, RegionsThatOnlySeemToContinueEachOtherStayApart) {
    const MemoryPtr memory = file_memory(8);
    const RegionPtr first = ram(0, memory, 0, 2 * page);
    EXPECT_EQ(table_of({first, ram(3 * page, memory, 2 * page, page)}).entries().size(), 2U) << "guest gap";
    EXPECT_EQ(table_of({first, ram(2 * page, memory, 3 * page, page)}).entries().size(), 2U) << "file gap";
    EXPECT_EQ(table_of({first, ram(2 * page, memory, 0, page)}).entries().size(), 2U)
        << "the same page twice";
    EXPECT_EQ(table_of({first, ram(2 * page, file_memory(4), 2 * page)}).entries().size(), 2U) << "file";
    // Host addresses that follow each other do not make two files one; the kernel asks for no file.
    const RegionPtr low = ram(0, memory_at(0x10000, page));
    const RegionPtr high = ram(page, memory_at(0x10000 + page, page));
    EXPECT_EQ(table_of({low, high}, {.back_end = VhostBackEnd::kernel}).entries().size(), 1U);
}

TEST(VhostTable, NeighborsInHostMemoryOfTwoFilesStayApart) {
    // Two files, mapped without guards: where they happen to follow each other, they are two entries all the same.
    const FileMemoryOptions options{.size_bytes = page, .guard_bytes = 0};
    std::vector<MemoryPtr> memories;
    for (int i = 0; i < 16; ++i)
        memories.push_back(HostMemory::create_from_file(some_file(1), options).value());
    std::ranges::sort(memories, {}, [](const MemoryPtr& memory) { return memory->bytes().data(); });
    std::vector<RegionPtr> regions;
    for (const MemoryPtr& memory : memories) regions.push_back(ram(regions.size() * page, memory));
    const bool are_neighbors =
        std::ranges::adjacent_find(memories, [](const MemoryPtr& a, const MemoryPtr& b) {
            return a->bytes().data() + page == b->bytes().data();
        }) != memories.end();
    if (!are_neighbors) GTEST_SKIP() << "SKIPPED: the kernel has put no two of the mappings side by side";

    EXPECT_EQ(table_of(regions, {.max_regions = 16}).entries().size(), 16U);
    EXPECT_LT(table_of(regions, {.back_end = VhostBackEnd::kernel}).entries().size(), 16U);
}

TEST(VhostTable, TakesAsManyEntriesAsTheBackEndAndNotOneMore) {
    const MemoryPtr memory = file_memory(1);
    std::vector<RegionPtr> regions;
    const auto add_up_to = [&](std::size_t count) {
        while (regions.size() < count) regions.push_back(ram(regions.size() * 2 * page, memory));
        return map_of(regions);
    };
    EXPECT_TRUE(VhostTable::create(*add_up_to(8), {}));
    const auto nine = VhostTable::create(*add_up_to(9), {});
    ASSERT_FALSE(nine);
    EXPECT_EQ(nine.error().code(), Errc::exhausted);
    EXPECT_EQ(
        nine.error().message(),
        "vhost table: the map has 9 regions of RAM that do not continue each other, and the back end takes 8");
    EXPECT_TRUE(VhostTable::create(*map_of(regions), {.max_regions = 9}));
    EXPECT_TRUE(VhostTable::create(*add_up_to(64), {.back_end = VhostBackEnd::kernel}));
    EXPECT_FALSE(VhostTable::create(*add_up_to(65), {.back_end = VhostBackEnd::kernel}));
}

TEST(VhostTable, AnOffsetWhereNobodyCanMapIsRefused) {
    const RegionPtr odd = ram(0, file_memory(4), 8);
    const auto table = VhostTable::create(*map_of({odd}, 1), {});
    ASSERT_FALSE(table);
    EXPECT_EQ(
        table.error().message(),
        "vhost table: region 'ram' (0x0 to 0x3ff7): its bytes begin at 0x8 of the file; a back end maps at "
        "multiples of 4096");
    EXPECT_TRUE(VhostTable::create(*map_of({odd}, 1), {.back_end = VhostBackEnd::kernel}));
}

TEST(VhostTable, TheOffsetInsideAnEntryMayBeAny) {
    const MemoryPtr memory = file_memory(4);
    const RegionPtr low = ram(0, memory, 0, 0x1800);
    const RegionPtr high = ram(0x1800, memory, 0x1800, 0x800);
    const auto table = VhostTable::create(*map_of({low, high}, 0x800), {});
    ASSERT_TRUE(table) << table.error().message();
    EXPECT_THAT(regions_in(*table), ElementsAre(VhostRegion{0, 0x2000, host_of(*low), 0}));
    EXPECT_THAT(table->entries()[0].parts, ElementsAre(low, high));

    // By itself, or behind a gap, it begins an entry.
    EXPECT_FALSE(VhostTable::create(*map_of({high}, 0x800), {}));
    const auto apart = VhostTable::create(*map_of({low, ram(0x2000, memory, 0x1800, 0x800)}, 0x800), {});
    ASSERT_FALSE(apart);
    EXPECT_THAT(apart.error().message(),
                HasSubstr("(0x2000 to 0x27ff): its bytes begin at 0x1800 of the file"));
}

TEST(VhostTable, KeepsItsDescriptorsOpenWhenTheMapIsGone) {
    const VhostTable table = table_of({ram(0, file_memory(4))});
    EXPECT_EQ(file_facts(table.fds()[0]).value().size_bytes, 4 * page);
}

/// What a back end does: it maps each file where the table says, as the regions lie in it.
std::vector<Mapping> map_at_offsets(const VhostTable& table) {
    std::vector<Mapping> mappings;
    for (const VhostEntry& entry : table.entries())
        mappings.push_back(Mapping::create(entry.fd, {.size_bytes = entry.region.memory_size,
                                                      .offset_bytes = entry.region.mmap_offset})
                               .value());
    return mappings;
}

/// Another way that back ends go: from the beginning of the file.
std::vector<Mapping> map_from_zero(const VhostTable& table) {
    std::vector<Mapping> mappings;
    for (const VhostEntry& entry : table.entries())
        mappings.push_back(
            Mapping::create(entry.fd, {.size_bytes = entry.region.mmap_offset + entry.region.memory_size})
                .value());
    return mappings;
}

struct Places {
    MapPtr map;
    std::vector<std::uint64_t> addresses;
};

/// Regions at different places of two files, two of them in a row, and the addresses of their first and last bytes.
Places some_places() {
    const MemoryPtr first = file_memory(16, {.offset_bytes = 2 * page});
    const MemoryPtr second = file_memory(4);
    const std::vector<RegionPtr> regions{ram(0, first, page, 2 * page), ram(2 * page, first, 3 * page, page),
                                         ram(16 * page, first, 8 * page), ram(0x1'0000'0000, second)};
    Places places{map_of(regions), {}};
    for (const RegionPtr& one : regions)
        for (const GuestAddress address : {one->range().base(), one->range().last()})
            places.addresses.push_back(address.value());
    return places;
}

std::byte mark_of(std::uint64_t address, int salt) {
    return static_cast<std::byte>((address >> 12) * 7 + (address & 0xff) + static_cast<std::uint64_t>(salt));
}

/// The byte that a back end finds for a guest address.
std::byte* find(const VhostTable& table, const std::vector<Mapping>& mappings, bool is_from_zero,
                std::uint64_t address) {
    for (std::size_t i = 0; i < mappings.size(); ++i) {
        const VhostRegion& region = table.entries()[i].region;
        if (address - region.guest_phys_addr >= region.memory_size) continue;
        const std::uint64_t skip = is_from_zero ? region.mmap_offset : 0;
        return mappings[i].bytes().data() + skip + (address - region.guest_phys_addr);
    }
    return nullptr;
}

TEST(VhostTable, ABackEndThatMapsWhatItSaysFindsTheGuestsBytes) {
    const Places places = some_places();
    const VhostTable table = VhostTable::create(*places.map, {}).value();
    ASSERT_EQ(table.entries().size(), 3U);
    GuestMemory memory{places.map};
    for (const bool is_from_zero : {false, true}) {
        const auto mappings = is_from_zero ? map_from_zero(table) : map_at_offsets(table);
        for (const std::uint64_t address : places.addresses) {
            const std::byte mark = mark_of(address, is_from_zero ? 1 : 2);
            ASSERT_TRUE(memory.write_bytes(GuestAddress{address}, std::span{&mark, 1}));
            std::byte* const found = find(table, mappings, is_from_zero, address);
            ASSERT_NE(found, nullptr) << address;
            EXPECT_EQ(*found, mark) << address;
        }
    }
}

TEST(VhostTable, AnotherProcessReadsWhatTheGuestWroteAndTheGuestReadsItsAnswer) {
    const Places places = some_places();
    const VhostTable table = VhostTable::create(*places.map, {}).value();
    GuestMemory memory{places.map};
    for (const std::uint64_t address : places.addresses) {
        const std::byte mark = mark_of(address, 3);
        ASSERT_TRUE(memory.write_bytes(GuestAddress{address}, std::span{&mark, 1}));
    }
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const auto mappings = map_at_offsets(table);
        int status = 0;
        for (const std::uint64_t address : places.addresses) {
            std::byte* const found = find(table, mappings, false, address);
            if (found == nullptr || *found != mark_of(address, 3)) status = 1;
            if (found != nullptr) *found = mark_of(address, 4);
        }
        ::_exit(status);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    for (const std::uint64_t address : places.addresses) {
        std::byte answer{};
        ASSERT_TRUE(memory.read_bytes(GuestAddress{address}, std::span{&answer, 1}));
        EXPECT_EQ(answer, mark_of(address, 4)) << address;
    }
}

TEST(VhostTable, TheKernelTakesItsTable) {
    const Fd vhost{::open("/dev/vhost-net", O_RDWR | O_CLOEXEC)};
    if (!vhost.is_open()) GTEST_SKIP() << "SKIPPED: no /dev/vhost-net that opens";
    ASSERT_EQ(::ioctl(vhost.view().number(), VHOST_SET_OWNER, 0), 0);
    const MapPtr map = some_places().map;
    const auto bytes = VhostTable::create(*map, {.back_end = VhostBackEnd::kernel}).value().encode();
    EXPECT_EQ(::ioctl(vhost.view().number(), VHOST_SET_MEM_TABLE, bytes.data()), 0);
}

}  // namespace
}  // namespace guestmem
