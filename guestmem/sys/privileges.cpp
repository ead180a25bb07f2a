// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/privileges.hpp"

#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem {
namespace {

struct Account {
    std::string name;
    uid_t user = 0;
    gid_t group = 0;
};

Result<Account> look_up(const std::string& user) {
    const std::uint32_t id = GM_TRY(user_id(user));
    std::vector<char> buffer(16 * 1024);
    passwd entry{};
    passwd* found = nullptr;
    const int status = ::getpwuid_r(id, &entry, buffer.data(), buffer.size(), &found);
    if (status != 0) return Error::from_errno(status, fmt::format("look up user {}", id));
    if (found == nullptr)
        return Error{Errc::not_found, fmt::format("no user {} on this host: its groups are not known", id)};
    return Account{.name = found->pw_name, .user = found->pw_uid, .group = found->pw_gid};
}

bool is_already(const Account& account) {
    uid_t real = 0;
    uid_t effective = 0;
    uid_t saved = 0;
    return ::getresuid(&real, &effective, &saved) == 0 && real == account.user && effective == account.user &&
           saved == account.user;
}

Result<void> set_control(int option, unsigned long value, std::string_view what) {
    if (checked_call(SysCall::prctl, [&] { return ::prctl(option, value, 0, 0, 0); }) < 0)
        return Error::from_errno(errno, what);
    return {};
}

/// While this process may: without CAP_SETPCAP the set stays as it is, and means nothing without a way to a program
/// that has them.
void empty_bounding_set() {
    constexpr unsigned long past_all = 64;
    for (unsigned long capability = 0; capability < past_all; ++capability)
        if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno == EINVAL) break;
    ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

Result<void> become(const Account& account) {
    const auto user = account.user;
    const auto group = account.group;
    if (checked_call(SysCall::set_user, [&] { return ::initgroups(account.name.c_str(), group); }) < 0)
        return Error::from_errno(errno, "take its groups");
    if (checked_call(SysCall::set_user, [&] { return ::setresgid(group, group, group); }) < 0)
        return Error::from_errno(errno, fmt::format("become group {}", group));
    if (checked_call(SysCall::set_user, [&] { return ::setresuid(user, user, user); }) < 0)
        return Error::from_errno(errno, fmt::format("become user {}", user));
    return {};
}

/// All but those whose bits are set in `kept`.
Result<void> give_up_capabilities(std::uint32_t kept) {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    std::array<__user_cap_data_struct, 2> sets{};
    sets[0].effective = kept;
    sets[0].permitted = kept;
    if (checked_call(SysCall::set_user, [&] { return ::syscall(SYS_capset, &header, sets.data()); }) < 0)
        return Error::from_errno(errno, "give up capabilities");
    return {};
}

/// An account that root may become, or is itself.
Result<Account> wanted_account(const std::string& user) {
    Account account = GM_TRY(look_up(user));
    if (account.user == 0) return Error{Errc::invalid_argument, "that is root, which gives up nothing"};
    if (!is_already(account) && ::geteuid() != 0)
        return Error{
            Errc::permission_denied, EPERM,
            fmt::format("only root can; this process is of user {}: start it as root or as that user, or "
                        "name no user",
                        ::geteuid())};
    return account;
}

}  // namespace

Result<void> harden_process() {
    GM_TRY(set_control(PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs"));
    GM_TRY(set_control(PR_SET_DUMPABLE, 0, "make the process not dumpable"));
    const rlimit none{.rlim_cur = 0, .rlim_max = 0};
    if (checked_call(SysCall::setrlimit, [&] { return ::setrlimit(RLIMIT_CORE, &none); }) < 0)
        return Error::from_errno(errno, "set the limit on core files to 0");
    return {};
}

Result<void> drop_thread_capabilities() {
    GM_TRY(set_control(PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs"));
    empty_bounding_set();
    return give_up_capabilities(0);
}

Result<void> close_descriptors_on_exec(unsigned first) {
    constexpr unsigned last = ~0U;
    const long status = checked_call(SysCall::close_range, [&] {
        return ::syscall(SYS_close_range, first, last, static_cast<unsigned>(CLOSE_RANGE_CLOEXEC));
    });
    if (status == 0) return {};
    if (errno == ENOSYS || errno == EINVAL)
        return Error{Errc::unsupported, errno,
                     "close descriptors on exec: this kernel cannot (Linux 5.11 can)"};
    return Error::from_errno(errno, "close descriptors on exec");
}

Result<void> take_user(const std::string& user) {
    if (user.empty()) return {};
    const std::string what = fmt::format("become user '{}'", user);
    const Account account = GM_TRY_CONTEXT(wanted_account(user), what);
    if (is_already(account)) return {};
    constexpr std::uint32_t kept = (1U << CAP_CHOWN) | (1U << CAP_FOWNER) | (1U << CAP_DAC_OVERRIDE);
    empty_bounding_set();
    GM_TRY_CONTEXT(set_control(PR_SET_KEEPCAPS, 1, "keep capabilities over the change of user"), what);
    GM_TRY_CONTEXT(become(account), what);
    GM_TRY_CONTEXT(give_up_capabilities(kept), what);
    GM_TRY_CONTEXT(set_control(PR_SET_KEEPCAPS, 0, "keep no capabilities any more"), what);
    return {};
}

Result<void> drop_privileges(const std::string& user) {
    if (user.empty()) return {};
    const std::string what = fmt::format("become user '{}'", user);
    const Account account = GM_TRY_CONTEXT(wanted_account(user), what);
    if (!is_already(account)) {
        empty_bounding_set();
        GM_TRY_CONTEXT(become(account), what);
    }
    GM_TRY_CONTEXT(give_up_capabilities(0), what);
    GM_TRY_CONTEXT(harden_process(), what);
    if (!is_already(account) || ::setresuid(0, 0, 0) == 0)
        return Error{Errc::permission_denied, fmt::format("{}: the way back to root is still open", what)};
    return {};
}

}  // namespace guestmem
