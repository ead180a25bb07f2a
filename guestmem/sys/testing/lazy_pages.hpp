// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"

/// Pages that userfaultfd(2) fills when they are touched first, for tests of guarded accesses.
///
/// Contract: each byte of page n is n + 1. start() says why there is no userfaultfd, or nothing. The fault guard is
/// installed.
/// Threads: one of its own fills the pages, until it is destroyed; the bytes any.
/// Example:
///     LazyPages lazy;
///     if (const std::string why = lazy.start(); !why.empty()) GTEST_SKIP() << "SKIPPED: " << why;

namespace guestmem::testing {

class LazyPages {
public:
    /// Empty when it works, else why not.
    std::string start() {
        // User mode only: what an ordinary user may have.
        fault_ =
            Fd{static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY))};
        if (!fault_.is_open()) return std::string{"userfaultfd: "} + std::strerror(errno);
        uffdio_api api{};
        api.api = UFFD_API;
        uffdio_register range{};
        range.range = {.start = address_of(guest_.data()), .len = guest_.size_bytes()};
        range.mode = UFFDIO_REGISTER_MODE_MISSING;
        if (ask(UFFDIO_API, &api) != 0 || ask(UFFDIO_REGISTER, &range) != 0)
            return std::string{"register memory: "} + std::strerror(errno);
        filler_ = std::thread{[this] { run(); }};
        return "";
    }
    LazyPages() = default;
    LazyPages(const LazyPages&) = delete;
    LazyPages& operator=(const LazyPages&) = delete;
    ~LazyPages() {
        is_over_ = true;
        if (filler_.joinable()) filler_.join();
    }
    [[nodiscard]] std::byte* page(std::size_t index) const { return guest_.page(index); }
    [[nodiscard]] int count_filled() const { return count_filled_; }
    static constexpr std::size_t count_pages = 4;

private:
    static std::uint64_t address_of(const void* at) { return reinterpret_cast<std::uintptr_t>(at); }
    [[nodiscard]] int ask(unsigned long request, void* argument) const {
        return ::ioctl(fault_.view().number(), request, argument);
    }
    void run() {
        const std::size_t size_bytes = GuestPages::page_bytes();
        std::vector<std::byte> bytes(size_bytes);
        for (; !is_over_; std::this_thread::yield()) {
            uffd_msg message{};
            if (::read(fault_.view().number(), &message, sizeof message) != sizeof message) continue;
            const std::uint64_t page = message.arg.pagefault.address & ~(std::uint64_t{size_bytes} - 1);
            std::memset(bytes.data(), static_cast<int>(1 + (page - address_of(guest_.data())) / size_bytes),
                        size_bytes);
            uffdio_copy filled{};
            filled.dst = page;
            filled.src = address_of(bytes.data());
            filled.len = size_bytes;
            ++count_filled_;  // before: the copy wakes who waits for it
            EXPECT_EQ(ask(UFFDIO_COPY, &filled), 0);
        }
    }

    GuestPages guest_{count_pages};
    Fd fault_;
    std::atomic<bool> is_over_{false};
    std::atomic<int> count_filled_{0};
    std::thread filler_;
};

}  // namespace guestmem::testing
