// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memfd.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

#include "guestmem/sys/host.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;
using ::testing::UnorderedElementsAre;

Fd memory_of(std::uint64_t size_bytes) {
    return create_sealed_memory({.name = "test", .size_bytes = size_bytes}).value();
}

TEST(SealedMemory, IsZeroedPrivateAndAllocated) {
    const Fd memory = memory_of(3 * 4096);
    const FileFacts facts = file_facts(memory).value();
    const Mapping mapping = Mapping::create(memory, 3 * 4096, MapAccess::read_only).value();
    struct stat status{};
    ASSERT_EQ(::fstat(memory.view().number(), &status), 0);

    EXPECT_EQ(facts.size_bytes, 3U * 4096);
    EXPECT_EQ(facts.allocated_bytes, 3U * 4096);
    EXPECT_EQ(status.st_mode & 0777U, 0600U);
    EXPECT_TRUE(std::ranges::all_of(mapping.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
}

TEST(SealedMemory, NobodyChangesItsSize) {
    const Fd memory = memory_of(2 * 4096);
    for (const off_t size : {off_t{0}, off_t{4096}, off_t{2 * 4096 + 1}, off_t{1} << 40}) {
        EXPECT_EQ(::ftruncate(memory.view().number(), size), -1) << size;
        EXPECT_EQ(errno, EPERM) << size;
    }
    EXPECT_EQ(file_facts(memory)->size_bytes, 2U * 4096);
}

TEST(SealedMemory, TakesNoFurtherSeal) {
    const Fd memory = memory_of(4096);
    EXPECT_EQ(::fcntl(memory.view().number(), F_ADD_SEALS, F_SEAL_WRITE), -1);
    EXPECT_THAT(*seals_of(memory), UnorderedElementsAre("seal", "shrink", "grow"));
    EXPECT_TRUE(*is_size_sealed(memory));
}

TEST(SealedMemory, IsWholePagesOrNothing) {
    for (const std::uint64_t size :
         {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{4095}, std::uint64_t{4097},
          std::numeric_limits<std::uint64_t>::max(), std::uint64_t{1} << 63}) {
        const auto memory = create_sealed_memory({.name = "test", .size_bytes = size});
        ASSERT_FALSE(memory) << size;
        EXPECT_EQ(memory.error().code(), Errc::invalid_argument) << size;
        EXPECT_THAT(memory.error().message(), HasSubstr("memory 'test'"));
    }
}

TEST(SealedMemory, LargerThanTheHostIsRefusedBeforeItIsTried) {
    const auto memory = create_sealed_memory({.name = "test", .size_bytes = std::uint64_t{1} << 50});
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code(), Errc::exhausted);
    EXPECT_THAT(memory.error().message(), HasSubstr("bytes available"));
}

TEST(SealedMemory, OfHugePagesIsWholeHugePagesOrNothing) {
    constexpr std::uint64_t huge = 2 << 20;
    for (const std::uint64_t huge_page : {huge, std::uint64_t{3} << 20}) {
        const auto memory =
            create_sealed_memory({.name = "test", .size_bytes = huge + 4096, .huge_page_bytes = huge_page});
        ASSERT_FALSE(memory) << huge_page;
        EXPECT_EQ(memory.error().code(), Errc::invalid_argument) << huge_page;
        EXPECT_THAT(memory.error().message(), HasSubstr("huge pages"));
    }
}

TEST(SealedMemory, AtTheLengthLimitOfANameIsMadeAndOnePastIsRefused) {
    constexpr std::size_t kernel_limit = 249;  // memfd_create(2)
    EXPECT_TRUE(create_sealed_memory({.name = std::string(kernel_limit, 'n'), .size_bytes = 4096}));
    EXPECT_FALSE(create_sealed_memory({.name = std::string(kernel_limit + 1, 'n'), .size_bytes = 4096}));
}

TEST(SealedMemory, WhateverFailsNothingIsLeft) {
    const auto count =
        for_each_fault([] { return create_sealed_memory({.name = "test", .size_bytes = 4096}); });
    EXPECT_GE(count,
              8U);  // /proc/meminfo: open and two reads; memfd_create, fchmod, ftruncate, fallocate, seals
}

TEST(Seals, OfAFileThatHasNoneAreNone) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", "x"), OpenMode::read_write).value();
    const Fd null = open_file("/dev/null", OpenMode::read).value();

    EXPECT_FALSE(*is_size_sealed(file));
    EXPECT_THAT(*seals_of(null), IsEmpty());
    EXPECT_FALSE(*is_size_sealed(null));
}

TEST(Seals, OneOfTwoSizeSealsIsNotEnough) {
    const Fd memory{::memfd_create("half", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    ASSERT_EQ(::fcntl(memory.view().number(), F_ADD_SEALS, F_SEAL_SHRINK), 0);

    EXPECT_FALSE(*is_size_sealed(memory));
    EXPECT_THAT(*seals_of(memory), UnorderedElementsAre("shrink"));
}

TEST(Seals, OfAClosedDescriptorAreAnError) {
    EXPECT_FALSE(seals_of(FdView{}));
    EXPECT_FALSE(is_size_sealed(FdView{}));
}

TEST(AllocatedMemory, CanBeMuchWithoutAFault) {
    // One past what a page table page maps, so that a mapping has a seam.
    constexpr std::uint64_t size = (2 << 20) + 4096;
    const Fd memory = memory_of(size);
    EXPECT_EQ(file_facts(memory)->allocated_bytes, size);
}

}  // namespace
}  // namespace guestmem
