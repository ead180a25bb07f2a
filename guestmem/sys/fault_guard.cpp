// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/fault_guard.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

// ------------------------------------------------------------------------------------------- the tables

/// A line of a table, with the addresses it has in this process.
struct Jump {
    std::uintptr_t access;
    std::uintptr_t recovery;
};

struct FaultTable {
    std::span<const FaultEntry> source;
    std::vector<Jump> jumps;  ///< sorted by access
};

// All of this is reached by a signal handler: constant initialization, no destructors that matter, no locks there.
constinit std::array<std::atomic<const FaultTable*>, max_fault_tables> tables{};
constinit std::atomic<std::uint32_t> count_searching{0};
constinit std::atomic<std::uint64_t> count_caught{0};
/// Held by whoever changes the tables or the handlers; never by the handler.
constinit std::mutex change_mutex;

std::uintptr_t target_of(const std::int32_t& distance) {
    return reinterpret_cast<std::uintptr_t>(&distance) + static_cast<std::uintptr_t>(distance);
}

std::vector<Jump> sorted_jumps(std::span<const FaultEntry> table) {
    std::vector<Jump> jumps;
    jumps.reserve(table.size());
    for (const FaultEntry& entry : table)
        jumps.push_back({target_of(entry.to_access), target_of(entry.to_recovery)});
    std::ranges::sort(jumps, {}, &Jump::access);
    return jumps;
}

/// Where to go on after a fault of the instruction at `access`; 0 when no table has it. Async-signal-safe.
std::uintptr_t find_recovery(std::uintptr_t access) {
    // Sequentially consistent with remove_fault_table(): either it sees that somebody searches and waits, or its
    // table is not seen here.
    count_searching.fetch_add(1);
    std::uintptr_t recovery = 0;
    for (const auto& slot : tables) {
        const FaultTable* table = slot.load();
        if (table == nullptr) continue;
        const auto found = std::ranges::lower_bound(table->jumps, access, {}, &Jump::access);
        if (found == table->jumps.end() || found->access != access) continue;
        recovery = found->recovery;
        break;
    }
    count_searching.fetch_sub(1);
    return recovery;
}

// ------------------------------------------------------------------------------------------ the machine

#if defined(__x86_64__)
constexpr bool is_supported = true;
std::uintptr_t instruction_of(const ucontext_t& context) {
    return static_cast<std::uintptr_t>(context.uc_mcontext.gregs[REG_RIP]);
}
void go_on_at(ucontext_t& context, std::uintptr_t address) {
    context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(address);
}
#elif defined(__aarch64__)
constexpr bool is_supported = true;
std::uintptr_t instruction_of(const ucontext_t& context) { return context.uc_mcontext.pc; }
void go_on_at(ucontext_t& context, std::uintptr_t address) { context.uc_mcontext.pc = address; }
#else
constexpr bool is_supported = false;
std::uintptr_t instruction_of(const ucontext_t&) { return 0; }
void go_on_at(ucontext_t&, std::uintptr_t) {}
#endif

// ----------------------------------------------------------------------------------- the earlier handlers

using Action = struct sigaction;

constexpr std::array signals{SIGBUS, SIGSEGV};

/// Actions that were replaced by ours. They are written once and stay: a handler may be reading them.
constexpr std::size_t max_earlier_actions = 16;
struct Earlier {
    std::array<Action, max_earlier_actions> actions{};
    std::size_t count = 0;
    std::atomic<const Action*> first{nullptr};   ///< from before the guard's first installation
    std::atomic<const Action*> latest{nullptr};  ///< from before its latest one
};
constinit std::array<Earlier, 2> earlier{};
constinit const Action default_action{};  // SIG_DFL is zero, and so is no flag

// SA_RESETHAND is the sign bit of the flags.
bool has_flag(const Action& action, unsigned flag) {
    return (static_cast<unsigned>(action.sa_flags) & flag) != 0;
}

Earlier& earlier_of(int signal) { return earlier[signal == SIGBUS ? 0 : 1]; }

/// A fault that this thread handed to an earlier handler, until that returns: its context, and where on the stack.
/// A handler that leaves by a jump leaves this behind.
struct HandedOn {
    const void* context = nullptr;
    const void* frame = nullptr;
};
[[gnu::tls_model("initial-exec")]] constinit thread_local HandedOn handed_on{};

/// Whether the instruction that is in the context raised the signal, and would raise it again.
bool is_fault(int signal, const siginfo_t& info) {
    // Sent by kill(2) and its kin: 0 or less. BUS_MCEERR_AO: broken memory that nobody has touched yet.
    return info.si_code > 0 && (signal != SIGBUS || info.si_code != BUS_MCEERR_AO);
}

void take_default_action(int signal, const siginfo_t& info) {
    ::sigaction(signal, &default_action, nullptr);
    // The instruction faults again, and the kernel ends the process at the true place. What was sent is sent again.
    if (!is_fault(signal, info)) ::raise(signal);
}

void call_handler(const Action& action, int signal, siginfo_t* info, void* context) {
    sigset_t blocked = action.sa_mask;
    if (!has_flag(action, SA_NODEFER)) ::sigaddset(&blocked, signal);
    sigset_t before;
    ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
    if (has_flag(action, SA_SIGINFO)) {
        action.sa_sigaction(signal, info, context);
    } else {
        action.sa_handler(signal);
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

/// What would have happened without the guard.
[[gnu::noinline]] void hand_on(int signal, siginfo_t* info, void* context) {
    Earlier& chain = earlier_of(signal);
    // A handler that replaced ours may know ours as its earlier one, and ours knows it since the next installation:
    // the same fault comes by again, further down the same stack. Then it goes to who was there before both.
    const void* frame = __builtin_frame_address(0);
    const bool is_again = handed_on.context == context && std::less<>{}(frame, handed_on.frame);
    std::atomic<const Action*>& link = is_again ? chain.first : chain.latest;
    const Action* action = link.load();
    if (action == nullptr) action = &default_action;
    const bool is_plain = !has_flag(*action, SA_SIGINFO);
    if (is_plain && (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN)) {
        // The kernel does not ignore a fault either.
        if (action->sa_handler == SIG_DFL || is_fault(signal, *info)) take_default_action(signal, *info);
        return;
    }
    if (has_flag(*action, SA_RESETHAND) && !link.compare_exchange_strong(action, &default_action)) {
        hand_on(signal, info, context);  // another thread had the one call that this handler gets
        return;
    }
    const HandedOn outer = std::exchange(handed_on, {context, frame});
    call_handler(*action, signal, info, context);
    handed_on = outer;
}

// ------------------------------------------------------------------------------------------- the handler

void handle_fault(int signal, siginfo_t* info, void* raw_context) {
    auto& context = *static_cast<ucontext_t*>(raw_context);
    if (is_fault(signal, *info)) {
        if (const std::uintptr_t recovery = find_recovery(instruction_of(context)); recovery != 0) {
            count_caught.fetch_add(1, std::memory_order_relaxed);
            go_on_at(context, recovery);
            return;
        }
    }
    const int os_error = errno;
    hand_on(signal, info, raw_context);
    errno = os_error;
}

bool is_ours(const Action& action) {
    return has_flag(action, SA_SIGINFO) && action.sa_sigaction == handle_fault;
}

bool is_same(const Action& left, const Action& right) {
    if (left.sa_flags != right.sa_flags || left.sa_handler != right.sa_handler) return false;
    // Of the mask the C library fills in as much as the kernel knows; the rest is what was on its stack.
    for (int signal = 1; signal < NSIG; ++signal)
        if (::sigismember(&left.sa_mask, signal) != ::sigismember(&right.sa_mask, signal)) return false;
    return true;
}

/// Has faults that are not ours go to `action`.
Result<void> remember(int signal, const Action& action) {
    Earlier& chain = earlier_of(signal);
    const auto known = std::span{chain.actions}.first(chain.count);
    auto found = std::ranges::find_if(known, [&](const Action& other) { return is_same(other, action); });
    const auto index = static_cast<std::size_t>(found - known.begin());
    if (index == max_earlier_actions)
        return Error{
            Errc::exhausted,
            fmt::format("install the fault guard: {} handlers have replaced it, there is room for no more",
                        max_earlier_actions)};
    if (index == chain.count) chain.actions[chain.count++] = action;
    if (chain.first.load() == nullptr) chain.first.store(&chain.actions[index]);
    chain.latest.store(&chain.actions[index]);
    return {};
}

Result<Action> current_action(int signal) {
    Action action{};
    if (checked_call(SysCall::sigaction, [&] { return ::sigaction(signal, nullptr, &action); }) < 0)
        return Error::from_errno(errno, fmt::format("ask for the handler of signal {}", signal));
    return action;
}

/// Puts our handler in front of the one that is there; what was there.
Result<Action> install_handler(int signal) {
    const Action seen = GM_TRY(current_action(signal));
    if (is_ours(seen)) return seen;
    // Known before ours can be called.
    GM_TRY(remember(signal, seen));
    Action ours{};
    ours.sa_sigaction = handle_fault;
    // SA_NODEFER: an earlier handler has its own say in what is blocked, and may leave by longjmp.
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    Action replaced{};
    if (checked_call(SysCall::sigaction, [&] { return ::sigaction(signal, &ours, &replaced); }) < 0)
        return Error::from_errno(errno, fmt::format("install the fault guard for signal {}", signal));
    // Somebody came between the two calls.
    if (!is_ours(replaced) && !is_same(replaced, seen)) GM_TRY(remember(signal, replaced));
    return replaced;
}

}  // namespace

namespace detail {

Result<void> add_fault_table(std::span<const FaultEntry> table) {
    if (table.empty()) return {};
    const std::scoped_lock lock{change_mutex};
    std::atomic<const FaultTable*>* free_slot = nullptr;
    for (auto& slot : tables) {
        const FaultTable* known = slot.load();
        if (known == nullptr) {
            if (free_slot == nullptr) free_slot = &slot;
        } else if (known->source.data() == table.data()) {
            return {};
        }
    }
    if (free_slot == nullptr)
        return Error{Errc::exhausted,
                     fmt::format("register a fault table: {} are registered, there is room for no more",
                                 max_fault_tables)};
    free_slot->store(new FaultTable{table, sorted_jumps(table)});
    return {};
}

void remove_fault_table(std::span<const FaultEntry> table) {
    const std::scoped_lock lock{change_mutex};
    for (auto& slot : tables) {
        const FaultTable* known = slot.load();
        if (known == nullptr || known->source.data() != table.data()) continue;
        slot.store(nullptr);
        while (count_searching.load() != 0) std::this_thread::yield();
        delete known;
    }
}

Result<void> install_fault_handler() {
    if constexpr (!is_supported)
        return Error{Errc::unsupported, "install the fault guard: there is none for this processor"};
    const std::scoped_lock lock{change_mutex};
    const Action before = GM_TRY(install_handler(signals.front()));
    auto installed = install_handler(signals.back());
    if (!installed) {
        if (!is_ours(before)) ::sigaction(signals.front(), &before, nullptr);
        return std::move(installed).error();
    }
    return {};
}

}  // namespace detail

bool is_fault_guard_installed() {
    return std::ranges::all_of(signals, [](int signal) {
        const auto action = current_action(signal);
        return action && is_ours(*action);
    });
}

Result<void> prepare_thread_for_guest_memory() {
    sigset_t wanted;
    ::sigemptyset(&wanted);
    for (const int signal : signals) ::sigaddset(&wanted, signal);
    const int status = checked_call(SysCall::sigmask, [&] {
        // The only call here that returns its error number.
        errno = ::pthread_sigmask(SIG_UNBLOCK, &wanted, nullptr);
        return errno == 0 ? 0 : -1;
    });
    if (status < 0) return Error::from_errno(errno, "unblock SIGBUS and SIGSEGV in this thread");
    return {};
}

std::uint64_t count_caught_faults() { return count_caught.load(std::memory_order_relaxed); }

}  // namespace guestmem
