// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/filter_program.hpp"

#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <initializer_list>
#include <limits>
#include <memory>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/fd.hpp"

#ifndef __has_feature
#define __has_feature(feature) 0
#endif

/// In every program that counts its coverage, and in no other.
extern "C" [[gnu::weak]] void __gcov_init(void*);  // NOLINT(bugprone-reserved-identifier): the compiler's

namespace guestmem {
namespace {

static_assert(sizeof(sock_filter) == sizeof(std::uint64_t));

using Context = std::unique_ptr<void, decltype([](void* context) { ::seccomp_release(context); })>;

constexpr std::uint32_t priority_of_the_first = 255;
// libseccomp's words for the shape of a program.
constexpr std::uint32_t shape_by_priority = 1;
constexpr std::uint32_t shape_tree = 2;

Error failure(int os_error, std::string_view what) {
    return Error::from_errno(os_error, fmt::format("filter of system calls: {}", what));
}

/// The number of a call; nothing where this architecture has no such call.
std::optional<int> number_of(const char* call) {
    const int number = ::seccomp_syscall_resolve_name(call);
    if (number < 0) return std::nullopt;
    return number;
}

Result<void> allow(const Context& context, const CallRule& rule) {
    const auto number = number_of(rule.call);
    if (!number) return {};
    const scmp_arg_cmp compare{
        .arg = rule.argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = rule.mask, .datum_b = rule.value};
    const int status = rule.mask == 0
                           ? ::seccomp_rule_add(context.get(), SCMP_ACT_ALLOW, *number, 0)
                           : ::seccomp_rule_add_array(context.get(), SCMP_ACT_ALLOW, *number, 1, &compare);
    if (status < 0) return failure(-status, fmt::format("allow {}", rule.call));
    return {};
}

Result<void> fill(const Context& context, const FilterPlan& plan) {
    for (std::string_view rest : plan.calls) {
        while (!rest.empty()) {
            const std::string call{rest.substr(0, rest.find(' '))};
            rest.remove_prefix(std::min(call.size() + 1, rest.size()));
            GM_TRY(allow(context, {.call = call.c_str()}));
        }
    }
    for (const CallRule& rule : plan.rules) GM_TRY(allow(context, rule));
    if (const auto clone3 = number_of("clone3")) {
        const int status = ::seccomp_rule_add(context.get(), SCMP_ACT_ERRNO(ENOSYS), *clone3, 0);
        if (status < 0) return failure(-status, "refuse clone3");
    }
    if (plan.first.empty()) return {};
    const std::string first{plan.first};
    const auto number = number_of(first.c_str());
    if (!number) return {};
    const int status = ::seccomp_syscall_priority(context.get(), *number, priority_of_the_first);
    if (status < 0) return failure(-status, fmt::format("look at {} first", first));
    return {};
}

std::uint32_t action_of(FilterAnswer answer) {
    switch (answer) {
        case FilterAnswer::kill: return SCMP_ACT_KILL_PROCESS;
        case FilterAnswer::refuse: return SCMP_ACT_ERRNO(EPERM);
        case FilterAnswer::log: return SCMP_ACT_LOG;
    }
    return SCMP_ACT_KILL_PROCESS;
}

/// The library writes programs to descriptors only.
Result<std::vector<std::uint64_t>> instructions_of(const Context& context) {
    const Fd file{checked_call(SysCall::memfd_create, [] { return ::memfd_create("filter", MFD_CLOEXEC); })};
    if (!file.is_open()) return failure(errno, "make room for it");
    if (const int status = ::seccomp_export_bpf(context.get(), file.view().number()); status < 0)
        return failure(-status, "make its program");
    const off_t size =
        checked_call(SysCall::lseek, [&] { return ::lseek(file.view().number(), 0, SEEK_END); });
    if (size < 0) return failure(errno, "measure its program");
    std::vector<std::uint64_t> instructions(static_cast<std::size_t>(size) / sizeof(std::uint64_t));
    const std::size_t size_bytes = instructions.size() * sizeof(std::uint64_t);
    const ssize_t count = checked_call(
        SysCall::read, [&] { return ::pread(file.view().number(), instructions.data(), size_bytes, 0); });
    if (count < 0) return failure(errno, "read its program");
    if (static_cast<std::size_t>(count) != size_bytes || instructions.empty() ||
        instructions.size() > std::numeric_limits<unsigned short>::max())
        return Error{Errc::corrupt, fmt::format("filter of system calls: a program of {} bytes", size)};
    return instructions;
}

}  // namespace

std::optional<std::string> find_filter_obstacle() {
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
    return "it is instrumented by AddressSanitizer, which makes system calls of its own";
#elif defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
    return "it is instrumented by ThreadSanitizer, which makes system calls of its own";
#elif __has_feature(memory_sanitizer)
    return "it is instrumented by MemorySanitizer, which makes system calls of its own";
#else
    if (&__gcov_init != nullptr) return "it counts its coverage, and writes files when it ends";
    return std::nullopt;
#endif
}

Result<FilterProgram> FilterProgram::create(const FilterPlan& plan) {
    if (const auto obstacle = find_filter_obstacle())
        return Error{Errc::unsupported,
                     fmt::format("filter of system calls: this build cannot: {}", *obstacle)};
    const Context context{::seccomp_init(action_of(plan.answer))};
    if (!context) return failure(ENOMEM, "begin");
    for (const auto& [attribute, value] : std::initializer_list<std::pair<scmp_filter_attr, std::uint32_t>>{
             {SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS},
             {SCMP_FLTATR_CTL_OPTIMIZE, plan.first.empty() ? shape_tree : shape_by_priority}})
        if (const int status = ::seccomp_attr_set(context.get(), attribute, value); status < 0)
            return failure(-status, fmt::format("set attribute {}", static_cast<int>(attribute)));
    GM_TRY(fill(context, plan));
    return FilterProgram{GM_TRY(instructions_of(context))};
}

Result<void> FilterProgram::install(FilterScope scope) const {
    if (checked_call(SysCall::prctl, [] { return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }) < 0)
        return failure(errno, "set no_new_privs");
    std::vector<std::uint64_t> copy = instructions_;
    const sock_fprog program{.len = static_cast<unsigned short>(copy.size()),
                             .filter = reinterpret_cast<sock_filter*>(copy.data())};
    const unsigned flags = scope == FilterScope::process ? SECCOMP_FILTER_FLAG_TSYNC : 0;
    const long status = checked_call(
        SysCall::seccomp, [&] { return ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program); });
    if (status < 0) return failure(errno, "hand it to the kernel");
    if (status > 0)
        return Error{Errc::unavailable,
                     fmt::format("filter of system calls: thread {} has one of its own already", status)};
    return {};
}

}  // namespace guestmem
