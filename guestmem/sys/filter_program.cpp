// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/filter_program.hpp"

#include <fmt/format.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <map>
#include <span>

#include "guestmem/sys/call_numbers.hpp"
#include "guestmem/sys/faults.hpp"

#ifndef __has_feature
#define __has_feature(feature) 0
#endif

/// In every program that counts its coverage, and in no other.
extern "C" [[gnu::weak]] void __gcov_init(void*);  // NOLINT(bugprone-reserved-identifier): the compiler's

namespace guestmem {
namespace {

static_assert(sizeof(sock_filter) == sizeof(std::uint64_t));

#if defined(__x86_64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t architecture = std::endian::native == std::endian::big ? 0 : AUDIT_ARCH_AARCH64;
#elif defined(__riscv) && __riscv_xlen == 64
constexpr std::uint32_t architecture = AUDIT_ARCH_RISCV64;
#elif defined(__s390x__)
constexpr std::uint32_t architecture = AUDIT_ARCH_S390X;
#elif defined(__powerpc64__)
constexpr std::uint32_t architecture =
    std::endian::native == std::endian::little ? AUDIT_ARCH_PPC64LE : AUDIT_ARCH_PPC64;
#else
constexpr std::uint32_t architecture = 0;
#endif
/// x86-64 has the calls of another architecture (x32) behind this bit.
constexpr std::uint32_t first_foreign_call = 0x4000'0000;

Error failure(int os_error, std::string_view what) {
    return Error::from_errno(os_error, fmt::format("filter of system calls: {}", what));
}

std::uint32_t action_of(FilterAnswer answer) {
    switch (answer) {
        case FilterAnswer::kill: return SECCOMP_RET_KILL_PROCESS;
        case FilterAnswer::refuse: return SECCOMP_RET_ERRNO | EPERM;
        case FilterAnswer::log: return SECCOMP_RET_LOG;
    }
    return SECCOMP_RET_KILL_PROCESS;
}

/// What is done with one call: allowed always, or by its rules, or refused with an errno.
struct Verdict {
    bool is_allowed = false;
    int os_error = 0;
    std::vector<CallRule> rules = {};
};
using Verdicts = std::map<unsigned, Verdict>;

/// Nothing where this architecture has no such call.
Result<std::optional<unsigned>> number_of(std::string_view call) {
    if (!is_known_call(call))
        return Error{Errc::invalid_argument,
                     fmt::format("filter of system calls: '{}' is none that call_numbers.cpp knows", call)};
    return call_number(call);
}

Result<Verdicts> judge(const FilterPlan& plan) {
    Verdicts verdicts;
    for (std::string_view rest : plan.calls) {
        while (!rest.empty()) {
            const std::string_view call = rest.substr(0, rest.find(' '));
            rest.remove_prefix(std::min(call.size() + 1, rest.size()));
            if (const auto number = GM_TRY(number_of(call))) verdicts[*number].is_allowed = true;
        }
    }
    for (const CallRule& rule : plan.rules) {
        const auto number = GM_TRY(number_of(rule.call));
        if (!number) continue;
        Verdict& verdict = verdicts[*number];
        verdict.is_allowed = verdict.is_allowed || rule.mask == 0;
        verdict.rules.push_back(rule);
    }
    if (const auto clone3 = GM_TRY(number_of("clone3"))) verdicts[*clone3] = {.os_error = ENOSYS};
    return verdicts;
}

/// Writes the program. Each block that is begun ends in an answer: nothing falls through it.
class Writer {
public:
    explicit Writer(FilterAnswer answer) : answer_(action_of(answer)) {}

    void begin() {
        load(offsetof(seccomp_data, arch));
        jump(BPF_JEQ, architecture, 1, 0);
        answer(SECCOMP_RET_KILL_PROCESS);
        load(offsetof(seccomp_data, nr));
#ifdef __x86_64__
        jump(BPF_JGE, first_foreign_call, 0, 1);
        answer(SECCOMP_RET_KILL_PROCESS);
#endif
    }

    /// The number is loaded; the other calls come behind.
    void look_first_at(unsigned number, const Verdict& verdict) {
        jump(BPF_JEQ, number, 1, 0);
        const std::size_t skip = skip_later();
        say(verdict);
        land(skip);
    }

    /// A tree: each step halves what is left.
    void choose(std::span<const std::pair<unsigned, const Verdict*>> calls) {
        if (calls.empty()) return answer(answer_);
        if (calls.size() == 1) {
            jump(BPF_JEQ, calls.front().first, 1, 0);
            answer(answer_);
            return say(*calls.front().second);
        }
        const std::size_t half = calls.size() / 2;
        jump(BPF_JGE, calls[half].first, 0, 1);
        const std::size_t skip = skip_later();
        choose(calls.first(half));
        land(skip);
        choose(calls.subspan(half));
    }

    [[nodiscard]] std::vector<std::uint64_t> take() { return std::move(instructions_); }

private:
    void say(const Verdict& verdict) {
        if (verdict.is_allowed) return answer(SECCOMP_RET_ALLOW);
        if (verdict.os_error != 0)
            return answer(SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(verdict.os_error));
        for (const CallRule& rule : verdict.rules) allow_by(rule);
        answer(answer_);
    }

    void allow_by(const CallRule& rule) {
        constexpr unsigned half_bits = 32;
        constexpr std::size_t high = std::endian::native == std::endian::little ? 4 : 0;
        const std::size_t at = offsetof(seccomp_data, args) + rule.argument * sizeof(std::uint64_t);
        const auto mask_of_high = static_cast<std::uint32_t>(rule.mask >> half_bits);
        const auto mask_of_low = static_cast<std::uint32_t>(rule.mask);
        const auto value_of_high = static_cast<std::uint32_t>(rule.value >> half_bits);
        if (mask_of_high != 0 || value_of_high != 0) {
            load(at + high);
            add(BPF_ALU | BPF_AND | BPF_K, mask_of_high);
            jump(BPF_JEQ, value_of_high, 1, 0);
            const std::size_t skip = skip_later();
            allow_half(at + 4 - high, mask_of_low, static_cast<std::uint32_t>(rule.value));
            return land(skip);
        }
        allow_half(at + 4 - high, mask_of_low, static_cast<std::uint32_t>(rule.value));
    }
    void allow_half(std::size_t at, std::uint32_t mask, std::uint32_t value) {
        load(at);
        if (mask != whole_int) add(BPF_ALU | BPF_AND | BPF_K, mask);
        jump(BPF_JEQ, value, 0, 1);
        answer(SECCOMP_RET_ALLOW);
    }

    void load(std::size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)); }
    void answer(std::uint32_t action) { add(BPF_RET | BPF_K, action); }
    void jump(int how, std::uint32_t value, std::uint8_t if_true, std::uint8_t if_false) {
        add(BPF_JMP | how | BPF_K, value, if_true, if_false);
    }
    /// A jump whose end is not known yet: conditional ones reach 255 instructions only.
    std::size_t skip_later() {
        add(BPF_JMP | BPF_JA, 0);
        return instructions_.size() - 1;
    }
    void land(std::size_t skip) {
        auto instruction = std::bit_cast<sock_filter>(instructions_[skip]);
        instruction.k = static_cast<std::uint32_t>(instructions_.size() - skip - 1);
        instructions_[skip] = std::bit_cast<std::uint64_t>(instruction);
    }
    void add(int code, std::uint32_t operand, std::uint8_t if_true = 0, std::uint8_t if_false = 0) {
        const sock_filter instruction{
            .code = static_cast<std::uint16_t>(code), .jt = if_true, .jf = if_false, .k = operand};
        instructions_.push_back(std::bit_cast<std::uint64_t>(instruction));
    }

    std::uint32_t answer_;
    std::vector<std::uint64_t> instructions_;
};

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
    if (architecture == 0)
        return Error{Errc::unsupported, "filter of system calls: this architecture's calls are not known"};
    const Verdicts verdicts = GM_TRY(judge(plan));
    std::vector<std::pair<unsigned, const Verdict*>> calls;
    for (const auto& [number, verdict] : verdicts) calls.emplace_back(number, &verdict);
    Writer writer{plan.answer};
    writer.begin();
    if (!plan.first.empty()) {
        const auto number = GM_TRY(number_of(plan.first));
        const auto found = number ? verdicts.find(*number) : verdicts.end();
        if (found != verdicts.end()) writer.look_first_at(found->first, found->second);
    }
    writer.choose(calls);
    FilterProgram program{writer.take()};
    if (program.count_instructions() > BPF_MAXINSNS)
        return Error{Errc::out_of_range,
                     fmt::format("filter of system calls: {} instructions: the kernel takes {}",
                                 program.count_instructions(), BPF_MAXINSNS)};
    return program;
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
