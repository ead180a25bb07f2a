// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/policy.hpp"

#include <gmock/gmock.h>

#include <cerrno>
#include <optional>
#include <string>
#include <utility>

#include "guestmem/sys/host.hpp"

namespace guestmem::share {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint32_t somebody = 4242;

PeerCredentials caller(std::uint32_t uid, std::optional<std::string> cgroup = {}) {
    return {.pid = 1, .uid = uid, .gid = 7, .cgroup = std::move(cgroup)};
}

ServiceConfig two_vms() {
    ServiceConfig config;
    config.file = "share.toml";
    config.control.operators = {1000};
    VmConfig linux_vm;
    linux_vm.name = "linux";
    linux_vm.match.user = somebody;
    linux_vm.rules = {{.verdict = Verdict::deny, .pattern = "secret*", .permissions = {}, .line = 12},
                      {.verdict = Verdict::allow,
                       .pattern = "mail*",
                       .permissions = {.may_attach = true, .may_create = false, .may_notify = false},
                       .line = 13}};
    VmConfig boxed;
    boxed.name = "boxed";
    boxed.match.cgroup = "/machine.slice/*";
    boxed.socket = ListenOptions{.path = "/run/boxed"};
    config.vms = {linux_vm, boxed};
    return config;
}

TEST(Policy, KnowsTheHostItsOperatorsAndVmsByWhatTheKernelSays) {
    const Policy policy{two_vms()};
    EXPECT_TRUE(policy.of_caller(caller(0)).is_host);
    EXPECT_TRUE(policy.of_caller(caller(own_user())).is_host);
    EXPECT_TRUE(policy.of_caller(caller(1000)).is_host);
    EXPECT_EQ(policy.of_caller(caller(somebody)).vm, "linux");
    EXPECT_FALSE(policy.of_caller(caller(somebody)).is_host);
    EXPECT_FALSE(policy.of_caller(caller(9)).is_known());
    EXPECT_FALSE(policy.of_caller(caller(9, "/machine.slice/a")).is_known()) << "it has a socket of its own";
    EXPECT_TRUE(policy.needs_cgroups());
}

TEST(Policy, AVmsOwnSocketIsForWhomItsWhoFits) {
    const Policy policy{two_vms()};
    EXPECT_EQ(policy.of_vm("boxed", caller(9, "/machine.slice/a")).vm, "boxed");
    EXPECT_FALSE(policy.of_vm("boxed", caller(0, "/user.slice")).is_known()) << "root, too, is asked";
    EXPECT_FALSE(policy.of_vm("boxed", caller(9)).is_known()) << "who cannot be told does not fit";
    EXPECT_FALSE(policy.of_vm("nobody", caller(9, "")).is_known());
}

TEST(Policy, ASessionIsOfItsVmAsLongAsSuchACallerCouldBe) {
    ServiceConfig config = two_vms();
    const Policy before{config};
    EXPECT_EQ(before.of_guest("linux", caller(somebody)).vm, "linux");
    EXPECT_FALSE(before.of_guest("linux", caller(9)).is_known());
    EXPECT_EQ(before.of_guest("boxed", caller(9, "/machine.slice/a")).vm, "boxed");
    EXPECT_FALSE(before.of_guest("boxed", caller(9, "/user.slice")).is_known());
    EXPECT_EQ(before.of_guest("boxed", caller(9)).vm, "boxed")
        << "the group is passed over after a take-over";
    EXPECT_TRUE(before.of_guest("", caller(1000)).is_host);
    EXPECT_FALSE(before.of_guest("", caller(9)).is_known());
    EXPECT_FALSE(before.of_guest("nobody", caller(somebody)).is_known());
    config.vms[0].match = {};
    const Policy after{config};
    EXPECT_FALSE(after.of_guest("linux", caller(somebody)).is_known()) << "nobody is known as it any more";
}

TEST(Policy, ARefusalNamesTheRuleInTheLogAndNothingToTheCaller) {
    const Policy policy{two_vms()};
    const Principal who{.vm = "linux", .is_host = false};
    std::string why;
    const auto refused = policy.check(who, "secret-1", Wanted::attach, why);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), EACCES);
    EXPECT_EQ(refused.error().message(), "vm 'linux' may not attach to share 'secret-1'");
    EXPECT_THAT(why, HasSubstr("share.toml:12"));

    EXPECT_FALSE(policy.check(who, "other", Wanted::attach, why)) << "with an allow the list ends in deny *";
    EXPECT_THAT(why, HasSubstr("deny *"));
    const auto granted = policy.check(who, "mailbox", Wanted::attach, why);
    ASSERT_TRUE(granted);
    EXPECT_FALSE(granted->may_notify);
    EXPECT_THAT(why, HasSubstr("share.toml:13"));
    EXPECT_FALSE(policy.check(who, "mailbox", Wanted::create, why));
}

TEST(Policy, TheHostMayEverythingAndNobodyKnownNothing) {
    const Policy policy{two_vms()};
    std::string why;
    EXPECT_TRUE(policy.check({.vm = {}, .is_host = true}, "secret-1", Wanted::create, why));
    const auto refused = policy.check({}, "mailbox", Wanted::attach, why);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), Not(HasSubstr("share.toml")));
}

}  // namespace
}  // namespace guestmem::share
