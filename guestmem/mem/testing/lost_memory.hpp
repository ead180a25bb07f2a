// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <span>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

/// Guest memory that the host loses: its file is cut short, or its pages are protected.
///
/// Concepts: one region of RAM of some pages at lost_base, and an ordinary page of RAM on either side of it, so that
/// accesses reach the lost page from both. The way in which pages are lost is the parameter of the tests.
/// Contract: lose_from(n) makes all pages from page n on lost, find_again() makes all of them good; pages of a file
/// that was cut short are zero then.
/// Threads: one at a time; accesses any.
/// Example:
///     LostMemory lost{LostBy::cutting_a_file};
///     lost.lose_from(1);
///     EXPECT_EQ(view.read<std::uint8_t>(lost.page(1)).error().reason(), AccessReason::fault);

namespace guestmem::testing {

enum class LostBy : std::uint8_t { cutting_a_file, cutting_a_memfd, protecting_pages };

inline std::ostream& operator<<(std::ostream& out, LostBy how) {
    switch (how) {
        case LostBy::cutting_a_file: return out << "cutting a file";
        case LostBy::cutting_a_memfd: return out << "cutting a memfd";
        case LostBy::protecting_pages: return out << "protecting pages";
    }
    return out;
}

class LostMemory {
public:
    static constexpr std::uint64_t base = 0x10000;
    static constexpr std::uint64_t count_pages = 4;
    static constexpr std::uint64_t size_bytes = count_pages * page_size_bytes;

    explicit LostMemory(LostBy how) : how_(how) {
        if (how == LostBy::cutting_a_file) {
            file_ = open_file(folder_.path_of("ram"), OpenMode::create_exclusive).value();
        } else {
            file_ = Fd{::memfd_create("lost", MFD_CLOEXEC)};
        }
        resize(size_bytes);
        memory_ = HostMemory::create_from_file(file_.duplicate().value(), {.size_bytes = size_bytes}).value();
        map_.ram(base - page_size_bytes, page_size_bytes, "below");
        map_.add({.name = "lost", .base = GuestAddress{base}, .memory = memory_});
        map_.ram(base + size_bytes, page_size_bytes, "above");
        map_.start_tracking();
    }

    [[nodiscard]] TestMap& map() { return map_; }
    [[nodiscard]] const HostMemory& memory() const { return *memory_; }
    /// The number of its region in map().
    static constexpr std::size_t number = 1;

    /// The first byte of that page.
    [[nodiscard]] static GuestAddress page(std::uint64_t page_number) {
        return GuestAddress{base + page_number * page_size_bytes};
    }

    void lose_from(std::uint64_t page_number) {
        const std::uint64_t kept_bytes = page_number * page_size_bytes;
        if (how_ == LostBy::protecting_pages) {
            protect(memory_->bytes().subspan(kept_bytes), PROT_NONE);
        } else {
            resize(kept_bytes);
        }
    }
    void find_again() {
        if (how_ == LostBy::protecting_pages) {
            protect(memory_->bytes(), PROT_READ | PROT_WRITE);
        } else {
            resize(size_bytes);
        }
    }
    /// The bytes as the host sees them; those of lost pages may not be touched.
    [[nodiscard]] std::span<std::byte> bytes() const { return memory_->bytes(); }

private:
    void resize(std::uint64_t size) {
        GM_CHECK(::ftruncate(file_.view().number(), static_cast<off_t>(size)) == 0);
    }
    static void protect(std::span<std::byte> bytes, int protection) {
        GM_CHECK(::mprotect(bytes.data(), bytes.size(), protection) == 0);
    }

    LostBy how_;
    TempFolder folder_;
    Fd file_;
    std::shared_ptr<const HostMemory> memory_;
    TestMap map_;
};

/// Installs the guard; its tests run once for each way to lose memory.
class LostMemoryTest : public ::testing::TestWithParam<LostBy> {
protected:
    static void SetUpTestSuite() {
        GM_CHECK(install_fault_guard());
        GM_CHECK(prepare_thread_for_guest_memory());
    }
    LostMemory lost_{GetParam()};
};

inline auto all_ways_to_lose() {
    return ::testing::Values(LostBy::cutting_a_file, LostBy::cutting_a_memfd, LostBy::protecting_pages);
}

}  // namespace guestmem::testing
