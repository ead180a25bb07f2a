// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/sandbox.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/sys/file_fence.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/privileges.hpp"

namespace guestmem::vmm {
namespace {

constexpr unsigned first_of_our_descriptors = 3;

Result<void> put_up_fence(ThreadKind kind) {
    // What the host has left, who calls, and a memory file's read-only half; what bells are rung by.
    const std::array<std::string, 3> of_the_service{"/proc", "/sys", "/dev/null"};
    const bool is_reading = kind == ThreadKind::service;
    static_cast<void>(GM_TRY(restrict_files(is_reading ? std::span<const std::string>{of_the_service}
                                                       : std::span<const std::string>{})));
    return {};
}

}  // namespace

Result<std::shared_ptr<const FilterProgram>> Sandbox::filter_of(ThreadKind kind) const {
    const std::lock_guard lock{mutex_};
    auto& filter = filters_.at(static_cast<std::size_t>(kind));
    if (filter == nullptr)
        filter = std::make_shared<const FilterProgram>(GM_TRY(make_thread_filter(kind, answer_)));
    return filter;
}

Result<void> Sandbox::enter(ThreadKind kind) const {
    const std::string what = fmt::format("sandbox of {} threads", to_string(kind));
    if (kind == ThreadKind::main) {
        const auto closed = close_descriptors_on_exec(first_of_our_descriptors);
        // No program is started anyhow: what an older kernel cannot do is no hole.
        if (!closed && closed.error().code() != Errc::unsupported)
            return Error{closed.error()}.with_context(what);
    }
    GM_TRY_CONTEXT(drop_thread_capabilities(), what);
    // A sanitizer reads /proc when the program ends, and attaches to its threads.
    if (obstacle()) return {};
    GM_TRY_CONTEXT(put_up_fence(kind), what);
    const auto filter = GM_TRY_CONTEXT(filter_of(kind), what);
    GM_TRY_CONTEXT(filter->install(FilterScope::thread), what);
    return {};
}

Result<void> keep_to_ourselves(std::span<std::byte> bytes, MemoryDump dump) {
    GM_TRY_CONTEXT(advise(bytes, Advice::dont_fork), "guest memory");
    if (dump == MemoryDump::left_out) GM_TRY_CONTEXT(advise(bytes, Advice::dont_dump), "guest memory");
    return {};
}

}  // namespace guestmem::vmm
