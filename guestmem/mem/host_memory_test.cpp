// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/host_memory.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using testing::Resources;
using testing::TempFolder;

constexpr std::uint64_t page = 4096;

using MemoryPtr = std::shared_ptr<const HostMemory>;

Fd some_file(std::uint64_t count_pages) {
    return create_sealed_memory({.name = "test", .size_bytes = count_pages * page}).value();
}

/// Whether a guarded read finds a byte there.
bool is_readable(const std::byte* at) {
    std::uint8_t value = 0;
    return try_load(at, value);
}

class HostMemoryEdges : public ::testing::Test {
protected:
    void SetUp() override {
        ASSERT_TRUE(install_fault_guard());
        ASSERT_TRUE(prepare_thread_for_guest_memory());
    }
};

TEST_F(HostMemoryEdges, GuardPagesStandOnBothSides) {
    for (const bool is_file : {false, true}) {
        SCOPED_TRACE(is_file ? "file" : "anonymous");
        const MemoryPtr memory =
            is_file ? HostMemory::create_from_file(some_file(2), {.size_bytes = 2 * page}).value()
                    : HostMemory::create_anonymous({.size_bytes = 2 * page}).value();
        const std::byte* const first = memory->bytes().data();
        EXPECT_TRUE(is_readable(first));
        EXPECT_TRUE(is_readable(first + 2 * page - 1));
        EXPECT_FALSE(is_readable(first - 1));
        EXPECT_FALSE(is_readable(first - page));
        EXPECT_FALSE(is_readable(first + 2 * page));
        EXPECT_FALSE(is_readable(first + 3 * page - 1));
    }
}

TEST_F(HostMemoryEdges, GuardsAreAsWideAsTheyWereAskedFor) {
    const MemoryPtr memory =
        HostMemory::create_anonymous({.size_bytes = page, .guard_bytes = 64 * page}).value();
    const std::byte* const first = memory->bytes().data();
    EXPECT_FALSE(is_readable(first - 64 * page));
    EXPECT_FALSE(is_readable(first + 65 * page - 1));
}

TEST_F(HostMemoryEdges, AFileThatIsCutShortIsSeenByTheCheckAndByAccesses) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(4 * page, 'x'));
    const MemoryPtr memory =
        HostMemory::create_from_file(open_file(path, OpenMode::read_write).value(), {.size_bytes = 4 * page})
            .value();
    Layout layout;
    layout.add(Region::create({.name = "ram", .base = GuestAddress{0}, .memory = memory}).value());
    GuestMemory guest{std::move(layout).freeze().value()};
    EXPECT_TRUE(memory->check_whole());

    ASSERT_EQ(::truncate(path.c_str(), 2 * page), 0);

    const auto whole = memory->check_whole();
    ASSERT_FALSE(whole);
    EXPECT_EQ(whole.error().code(), Errc::corrupt);
    EXPECT_EQ(
        whole.error().message(),
        "the file of this memory was cut short: it has 8192 bytes, and 16384 are mapped; restore it, or stop "
        "its user");
    EXPECT_TRUE(guest.read<std::uint64_t>(GuestAddress{2 * page - 8}));
    const auto lost = guest.read<std::uint64_t>(GuestAddress{2 * page});
    ASSERT_FALSE(lost);
    EXPECT_EQ(lost.error().reason(), AccessReason::fault);

    ASSERT_EQ(::truncate(path.c_str(), 4 * page), 0);
    EXPECT_TRUE(memory->check_whole());
    EXPECT_EQ(*guest.read<std::uint64_t>(GuestAddress{2 * page}), 0U);
}

TEST(HostMemory, AnonymousMemoryIsZeroedWritableAndPrivate) {
    const MemoryPtr memory = HostMemory::create_anonymous({.size_bytes = 3 * page}).value();
    EXPECT_EQ(memory->bytes().size(), 3 * page);
    EXPECT_TRUE(std::ranges::all_of(memory->bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
    memory->bytes()[0] = std::byte{1};
    EXPECT_EQ(memory->access(), MapAccess::read_write);
    EXPECT_EQ(memory->sharing(), MapSharing::private_copy);
    EXPECT_FALSE(memory->file());
    EXPECT_TRUE(memory->check_whole());
    EXPECT_EQ(
        HostMemory::create_anonymous({.size_bytes = page, .sharing = MapSharing::shared}).value()->sharing(),
        MapSharing::shared);
}

TEST(HostMemory, ShowsTheBytesOfItsFileAndSaysWhereTheyStand) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(page, 'a') + std::string(page, 'b'));
    const MemoryPtr memory = HostMemory::create_from_file(open_file(path, OpenMode::read_write).value(),
                                                          {.size_bytes = page, .offset_bytes = page})
                                 .value();

    EXPECT_EQ(memory->bytes()[0], std::byte{'b'});
    memory->bytes()[page - 1] = std::byte{'c'};

    EXPECT_EQ(folder.read("ram").back(), 'c');
    ASSERT_TRUE(memory->file());
    EXPECT_EQ(memory->file()->offset_bytes, page);
    EXPECT_EQ(file_facts(memory->file()->fd).value().size_bytes, 2 * page);
    EXPECT_EQ(memory->sharing(), MapSharing::shared);
}

TEST(HostMemory, APrivateCopyLeavesItsFileAlone) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(page, 'a'));
    const MemoryPtr memory =
        HostMemory::create_from_file(open_file(path, OpenMode::read).value(),
                                     {.size_bytes = page, .sharing = MapSharing::private_copy})
            .value();
    memory->bytes()[0] = std::byte{'b'};
    EXPECT_EQ(folder.read("ram")[0], 'a');
    EXPECT_EQ(memory->sharing(), MapSharing::private_copy);
}

TEST(HostMemory, AFileThatIsTooShortIsAnErrorAndTheDescriptorIsClosed) {
    const Resources before = Resources::look();
    const auto memory = HostMemory::create_from_file(some_file(2), {.size_bytes = 2 * page + 1});
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code(), Errc::out_of_range);
    EXPECT_FALSE(HostMemory::create_from_file(some_file(2), {.size_bytes = 2 * page, .offset_bytes = page}));
    EXPECT_FALSE(HostMemory::create_from_file(some_file(2), {.size_bytes = 0}));
    EXPECT_FALSE(HostMemory::create_from_file(some_file(2), {.size_bytes = 8, .offset_bytes = 8}));
    EXPECT_FALSE(HostMemory::create_from_file(Fd{}, {.size_bytes = page}));
    EXPECT_EQ(Resources::look(), before);
}

TEST(HostMemory, AReadOnlyFileIsReadOnlyMemory) {
    const TempFolder folder;
    const std::string path = folder.write("rom", std::string(page, 'r'));
    EXPECT_FALSE(HostMemory::create_from_file(open_file(path, OpenMode::read).value(), {.size_bytes = page}));
    const MemoryPtr memory =
        HostMemory::create_from_file(open_file(path, OpenMode::read).value(),
                                     {.size_bytes = page, .access = MapAccess::read_only})
            .value();
    EXPECT_EQ(memory->access(), MapAccess::read_only);
    EXPECT_EQ(memory->bytes()[0], std::byte{'r'});
}

TEST(HostMemory, BorrowedMemoryKeepsItsOwnerAlive) {
    auto owner = std::make_shared<std::vector<std::byte>>(64);
    const std::weak_ptr<const void> watch = owner;
    std::byte* const first = owner->data();
    MemoryPtr memory = HostMemory::borrow({first, 64}, MapAccess::read_only, std::move(owner)).value();
    EXPECT_FALSE(watch.expired());
    EXPECT_EQ(memory->bytes().data(), first);
    EXPECT_EQ(memory->access(), MapAccess::read_only);
    EXPECT_FALSE(memory->file());
    EXPECT_TRUE(memory->check_whole());
    memory = nullptr;
    EXPECT_TRUE(watch.expired());
}

TEST(HostMemory, NoBytesCannotBeBorrowed) {
    const auto memory = HostMemory::borrow({}, MapAccess::read_write, nullptr);
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().message(), "borrow host memory: there are 0 bytes, give at least one");
}

TEST(HostMemory, IsGoneFromTheProcessWithItsLastHolder) {
    const Resources before = Resources::look();
    {
        MemoryPtr first = HostMemory::create_from_file(some_file(2), {.size_bytes = 2 * page}).value();
        const std::vector<MemoryPtr> others(2, first);
        first = nullptr;
        EXPECT_NE(Resources::look(), before);
    }
    EXPECT_EQ(Resources::look(), before);
}

TEST(HostMemory, WhateverSystemCallFailsIsAnErrorAndNothingIsLeft) {
    EXPECT_EQ(for_each_fault([] {
                  return HostMemory::create_anonymous({.size_bytes = page, .sharing = MapSharing::shared});
              }),
              2U)
        << "the room with its guards, the bytes";
    const Fd file = some_file(2);
    const auto count = for_each_fault([&]() -> Result<MemoryPtr> {
        Fd again = GM_TRY(file.duplicate());
        return HostMemory::create_from_file(std::move(again), {.size_bytes = 2 * page});
    });
    EXPECT_GE(count, 4U) << "dup, fstat, F_GETFL, mmap twice";
    const MemoryPtr memory =
        HostMemory::create_from_file(file.duplicate().value(), {.size_bytes = page}).value();
    EXPECT_EQ(for_each_fault([&] { return memory->check_whole(); }), 2U) << "fstat, F_GETFL";
}

}  // namespace
}  // namespace guestmem
