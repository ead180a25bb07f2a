// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/mapping.hpp"

/// Pages that come and go, for tests of guarded accesses.
///
/// Contract: some pages of anonymous memory in a row, each of which can be taken away, made read-only and given
/// back; its bytes stay. The fault guard is installed. Pages have the machine's size.
/// Threads: protect() any; it changes the page for all.
/// Example:
///     const GuestPages guest{2};
///     guest.protect(1, PageAccess::none);
///     EXPECT_FALSE(try_load(guest.page(1), value));

namespace guestmem::testing {

enum class PageAccess : std::uint8_t { none, read_only, read_write };

class GuestPages {
public:
    explicit GuestPages(std::size_t count_pages)
        : mapping_(Mapping::create_anonymous({.size_bytes = count_pages * page_bytes()}).value()) {
        GM_CHECK(install_fault_guard() && prepare_thread_for_guest_memory());
    }

    static std::size_t page_bytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

    [[nodiscard]] std::byte* data() const { return mapping_.bytes().data(); }
    [[nodiscard]] std::size_t size_bytes() const { return mapping_.bytes().size(); }
    [[nodiscard]] std::byte* page(std::size_t index) const { return data() + index * page_bytes(); }

    void protect(std::size_t index, PageAccess access) const {
        const int protection = access == PageAccess::none        ? PROT_NONE
                               : access == PageAccess::read_only ? PROT_READ
                                                                 : PROT_READ | PROT_WRITE;
        GM_CHECK(::mprotect(page(index), page_bytes(), protection) == 0);
    }

private:
    Mapping mapping_;
};

}  // namespace guestmem::testing
