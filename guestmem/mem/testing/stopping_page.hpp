// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <cstddef>
#include <span>
#include <thread>

#include "guestmem/base/check.hpp"
#include "guestmem/base/sizes.hpp"

/// A page at which an access stops until it is let go: to see what others do while an access is under way.
///
/// Concepts: a closed page raises SIGSEGV, whose handler waits there, then opens the page and lets the access happen.
/// Contract: one at a time in a process; its handler stands in for the one that was there.
/// Threads: close() and let_go() one at a time; one thread stops at a time.
/// Example:
///     page.close();
///     std::thread other{[&] { page.bytes()[0] = std::byte{1}; }};
///     page.wait_for_access();
///     ... the write is under way ...
///     page.let_go();

namespace guestmem::testing {

class StoppingPage {
public:
    StoppingPage() : bytes_(static_cast<std::byte*>(map())) {
        active_ = this;
        struct sigaction action{};
        action.sa_sigaction = stop;
        action.sa_flags = SA_SIGINFO;
        GM_CHECK(bytes_ != MAP_FAILED && ::sigaction(SIGSEGV, &action, &previous_) == 0);
    }
    StoppingPage(const StoppingPage&) = delete;
    StoppingPage& operator=(const StoppingPage&) = delete;
    ~StoppingPage() {
        ::sigaction(SIGSEGV, &previous_, nullptr);
        ::munmap(bytes_, page_size_bytes);
        active_ = nullptr;
    }

    [[nodiscard]] std::span<std::byte> bytes() const { return {bytes_, page_size_bytes}; }
    /// Until somebody has stopped there.
    void close() {
        can_go_ = false;
        has_stopped_ = false;
        ::mprotect(bytes_, page_size_bytes, PROT_NONE);
    }
    void wait_for_access() const {
        while (!has_stopped_) std::this_thread::yield();
    }
    void let_go() { can_go_ = true; }

private:
    static void* map() {
        return ::mmap(nullptr, page_size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    static void stop(int, siginfo_t*, void*) {
        active_->has_stopped_ = true;
        while (!active_->can_go_) ::sched_yield();
        ::mprotect(active_->bytes_, page_size_bytes, PROT_READ | PROT_WRITE);
    }

    static inline StoppingPage* active_ = nullptr;  // NOLINT(readability-identifier-naming): private
    std::byte* bytes_;
    struct sigaction previous_{};
    std::atomic<bool> has_stopped_{false};
    std::atomic<bool> can_go_{false};
};

}  // namespace guestmem::testing
