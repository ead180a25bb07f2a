// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/config_file.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ConfigFile : public ::testing::Test {
protected:
    [[nodiscard]] std::string good() const {
        return fmt::format(R"([control]
path = "{0}/control"
operators = [1000, "root"]

[[share]]
name = "mailbox"
size = "12K"
vectors = 2
slots = 4
socket = "{0}/any"

[[vm]]
name = "linux"
[[vm.attach]]
share = "mailbox"
slot = 0
socket = "{0}/linux"
owner = "root"
group = 0
mode = "0660"
)",
                           folder_.path());
    }
    static std::string complaint(const std::string& text) {
        const auto parsed = parse_config(text, "f.toml");
        return parsed ? "no complaint" : parsed.error().message();
    }
    std::string changed(const std::string& from, const std::string& to) const {
        std::string text = good();
        const std::size_t at = text.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        return text.replace(at, from.size(), to);
    }

    TempFolder folder_;
};

TEST_F(ConfigFile, EverythingInItArrives) {
    const auto config = parse_config(good(), "f.toml");
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_THAT(config->control.operators, ElementsAre(1000U, 0U));
    ASSERT_EQ(config->shares.size(), 1U);
    EXPECT_EQ(config->shares[0].size_bytes, 12288U);
    EXPECT_EQ(config->shares[0].vectors, 2U);
    EXPECT_EQ(config->shares[0].slots, 4U);
    ASSERT_EQ(config->doors.size(), 2U);
    EXPECT_EQ(config->doors[0].vm, "");
    EXPECT_EQ(config->doors[1].vm, "linux");
    EXPECT_THAT(config->doors[1].slots, ElementsAre(0U));
    EXPECT_EQ(config->doors[1].socket.owner, 0U);
    EXPECT_EQ(config->doors[1].socket.mode, 0660U);
    EXPECT_THAT(owned_slots(*config, "mailbox"), ElementsAre(0U));
}

TEST_F(ConfigFile, AWrongKeyIsShownWithTheKnownOneThatIsClosest) {
    EXPECT_THAT(complaint(changed("vectors", "vektors")),
                HasSubstr("f.toml:8:1: error: unknown key 'vektors' in [[share]]\n"
                          "   8 | vektors = 2\n"
                          "     | ^\n"
                          "     = did you mean 'vectors'?"));
}

TEST_F(ConfigFile, ASizeThatIsNotWholePagesSaysTheNext) {
    EXPECT_THAT(complaint(changed("\"12K\"", "5000")),
                HasSubstr("f.toml:7:8: error: size 5000 is not whole pages of 4096 bytes\n"
                          "   7 | size = 5000\n"
                          "     |        ^\n"
                          "     = the next size is 8192"));
}

TEST_F(ConfigFile, ASlotGivenTwiceNamesBothPlaces) {
    const std::string second = fmt::format(
        "[[vm]]\nname = \"rtos\"\n[[vm.attach]]\nshare = \"mailbox\"\nslots = [1, 0]\nsocket = \"{}/rtos\"\n",
        folder_.path());
    const std::string said = complaint(good() + second);
    EXPECT_THAT(
        said,
        HasSubstr(
            "f.toml:25:13: error: slot 0 of share 'mailbox' belongs to vm 'linux' already, on line 16"));
    EXPECT_THAT(said, HasSubstr("slot 2 is free"));
}

TEST_F(ConfigFile, ASocketTwiceIsAnError) {
    EXPECT_THAT(complaint(changed("/linux\"", "/any\"")), HasSubstr("stands already on line 10"));
}

TEST_F(ConfigFile, AFolderThatDoesNotExistIsNamed) {
    EXPECT_THAT(complaint(changed("/any", "/no/such/any")), HasSubstr("mkdir -p"));
}

TEST_F(ConfigFile, AllMistakesAreShownAtOnce) {
    std::string text = changed("\"12K\"", "0");
    text.replace(text.find("slot = 0"), 8, "slot = 4");
    text.replace(text.find("mode = \"0660\""), 13, "mode = \"worl\"");
    const std::string said = complaint(text);
    EXPECT_THAT(said, HasSubstr("size 0"));
    EXPECT_THAT(said, HasSubstr("slot 4: share 'mailbox' has 4 slots"));
    EXPECT_THAT(said, HasSubstr("octal"));
}

TEST_F(ConfigFile, AWrongTypeIsSaidForEveryKey) {
    EXPECT_THAT(complaint(changed("name = \"mailbox\"", "name = 7")),
                HasSubstr("'name' is a number where a text belongs"));
    EXPECT_THAT(complaint(changed("vectors = 2", "vectors = \"2\"")),
                HasSubstr("'vectors' is a text where a number belongs"));
    EXPECT_THAT(complaint(changed("vectors = 2", "vectors = -2")), HasSubstr("'vectors' is negative"));
    EXPECT_THAT(complaint(changed("slot = 0", "slot = 0.5")),
                HasSubstr("'slot' is a fraction where a number belongs"));
    EXPECT_THAT(complaint(changed("[1000, \"root\"]", "\"root\"")), HasSubstr("is not a list"));
    EXPECT_THAT(complaint("share = 3\n"), HasSubstr("where tables belong"));
}

TEST_F(ConfigFile, UnknownUsersAndGroupsAreNamed) {
    EXPECT_THAT(complaint(changed("owner = \"root\"", "owner = \"no-such-user\"")),
                HasSubstr("no user 'no-such-user'"));
    EXPECT_THAT(complaint(changed("group = 0", "group = \"no-such-group\"")),
                HasSubstr("no group 'no-such-group'"));
}

TEST_F(ConfigFile, BrokenTomlIsAnErrorWithItsPlace) {
    EXPECT_THAT(complaint("[[share]]\nname = \"x\n"), HasSubstr("f.toml:2:"));
    EXPECT_THAT(complaint("[[[[[["), HasSubstr("f.toml:1:"));
    EXPECT_THAT(complaint(std::string(300, '[')), HasSubstr("f.toml:1:"));
}

TEST_F(ConfigFile, LettersAndDepthThatTheReaderCannotTakeAreErrors) {
    EXPECT_THAT(complaint("\xc3\xa4 = 1\n"), HasSubstr("f.toml:1:"));
    EXPECT_THAT(complaint("a" + std::string(100'000, '.') + "b = 1\n"), HasSubstr("f.toml:1:"));
    EXPECT_THAT(complaint("a = " + std::string(100'000, '[')), HasSubstr("f.toml:1:"));
    EXPECT_THAT(complaint("\xff\xfe"), HasSubstr("f.toml:1:"));
}

TEST_F(ConfigFile, AFileWithoutAShareSaysWhatToWrite) { EXPECT_THAT(complaint(""), HasSubstr("[[share]]")); }

TEST_F(ConfigFile, ClassicIdsTakeNoSlots) {
    EXPECT_THAT(complaint(changed("slots = 4", "slots = 4\nids = \"classic\"")),
                HasSubstr("order of arrival"));
    std::string text = changed("slots = 4", "slots = 4\nids = \"classic\"");
    text.replace(text.find("slot = 0\n"), 9, "");
    EXPECT_EQ(complaint(text), "no complaint");
}

TEST_F(ConfigFile, AFileBeyondTheLimitIsRefused) {
    const std::string path = folder_.path_of("big.toml");
    ASSERT_TRUE(write_text_file(path, std::string(max_config_bytes, '\n')));
    EXPECT_THAT(read_config_file(path).error().message(), HasSubstr("no share"));
    ASSERT_TRUE(write_text_file(path, std::string(max_config_bytes + 1, '\n')));
    EXPECT_THAT(read_config_file(path).error().message(), HasSubstr("limit"));
}

TEST_F(ConfigFile, TheFileAndTheLinesOfWhatStandsInItAreKnown) {
    const auto config = parse_config(good(), "f.toml");
    ASSERT_TRUE(config);
    EXPECT_EQ(config->file, "f.toml");
    EXPECT_EQ(config->shares[0].line, 5U);
    ASSERT_EQ(config->vms.size(), 1U);
    EXPECT_EQ(config->vms[0].name, "linux");
    EXPECT_EQ(config->vms[0].line, 12U);
    EXPECT_EQ(config->doors[0].line, 5U);
    EXPECT_EQ(config->doors[1].line, 14U);
}

TEST_F(ConfigFile, AVmsRightsArrive) {
    const std::string text = good() + fmt::format(R"(
[[vm]]
name = "rtos"
socket = "{}/rtos.control"
mode = "0660"
who = {{ user = "root", group = 0, cgroup = "/machine.slice/rtos*" }}
limits = {{ shares = 4, bytes = "1G", peers = 8, vectors = 64, queued_messages = 1000 }}
rules = [
  {{ allow = "mail*", may = ["attach", "notify"], read_only = true }},
  {{ allow = "log" }},
  {{ deny = "*" }},
]
)",
                                                  folder_.path());
    const auto config = parse_config(text, "f.toml");
    ASSERT_TRUE(config) << config.error().message();
    const VmConfig& vm = config->vms.at(1);
    ASSERT_TRUE(vm.socket);
    EXPECT_EQ(vm.socket->path, folder_.path_of("rtos.control"));
    EXPECT_EQ(vm.socket->mode, 0660U);
    EXPECT_EQ(vm.match, (CredentialMatch{.user = 0, .group = 0, .cgroup = "/machine.slice/rtos*"}));
    EXPECT_EQ(vm.limits.shares, 4U);
    EXPECT_EQ(vm.limits.bytes, 1U << 30);
    EXPECT_EQ(vm.limits.peers, 8U);
    EXPECT_EQ(vm.limits.vectors, 64U);
    EXPECT_EQ(vm.limits.queued_messages, 1000U);
    ASSERT_EQ(vm.rules.size(), 3U);
    EXPECT_EQ(vm.rules[0].pattern, "mail*");
    EXPECT_EQ(
        vm.rules[0].permissions,
        (Permissions{.may_attach = true, .may_create = false, .may_notify = true, .is_read_only = true}));
    EXPECT_EQ(vm.rules[0].line, 29U);
    EXPECT_EQ(vm.rules[1].permissions, Permissions{});
    EXPECT_EQ(vm.rules[2].verdict, Verdict::deny);
    EXPECT_EQ(vm.rules[2].line, 31U);
}

TEST_F(ConfigFile, RulesMayBeTablesOfTheirOwn) {
    const auto config =
        parse_config(good() + "[[vm.rules]]\nallow = \"mail*\"\n[[vm.rules]]\ndeny = \"x\"\n", "f.toml");
    ASSERT_TRUE(config) << config.error().message();
    ASSERT_EQ(config->vms[0].rules.size(), 2U);
    EXPECT_EQ(config->vms[0].rules[0].line, 21U);
    EXPECT_EQ(config->vms[0].rules[1].line, 23U);
}

TEST_F(ConfigFile, BackingsArrive) {
    const auto config = parse_config(
        changed("slots = 4",
                fmt::format("slots = 4\nbacking = \"file\"\nkeep = true\npath = \"{}/m\"", folder_.path())),
        "f.toml");
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_EQ(config->shares[0].backing, BackingKind::file);
    EXPECT_EQ(config->shares[0].path, folder_.path_of("m"));
    EXPECT_TRUE(config->shares[0].is_kept);
    EXPECT_EQ(complaint(changed("slots = 4", "slots = 4\nbacking = \"shm\"\npath = \"/m\"")), "no complaint");
    EXPECT_EQ(complaint(changed("\"12K\"", "\"4M\"\nhuge_pages = \"2M\"")), "no complaint");
}

TEST_F(ConfigFile, ABackingThatDoesNotFitIsSaid) {
    const auto with = [&](const std::string& keys) {
        return complaint(changed("slots = 4", "slots = 4\n" + keys));
    };
    EXPECT_THAT(with("backing = \"disk\""), HasSubstr("write \"memfd\" or \"file\" or \"shm\""));
    EXPECT_THAT(with("backing = \"file\""), HasSubstr("'path' is missing"));
    EXPECT_THAT(with("backing = \"file\"\npath = \"m\""), HasSubstr("begins with '/'"));
    EXPECT_THAT(with("backing = \"file\"\npath = \"/no/such/m\""), HasSubstr("mkdir -p /no/such"));
    EXPECT_THAT(with("backing = \"shm\"\npath = \"/a/b\""), HasSubstr("without another '/'"));
    EXPECT_THAT(with("path = \"/m\""), HasSubstr("a memfd has no path"));
    EXPECT_THAT(with("backing = \"shm\"\npath = \"/m\"\nhuge_pages = \"2M\""), HasSubstr("only a memfd"));
    EXPECT_THAT(with("huge_pages = \"2M\""), HasSubstr("not whole huge pages"));
    EXPECT_THAT(with("huge_pages = 0"), HasSubstr("huge pages of 0"));
    EXPECT_THAT(with("keep = \"yes\""), HasSubstr("true or false"));
}

TEST_F(ConfigFile, APathOfTwoSharesIsAnError) {
    const std::string keys = "backing = \"shm\"\npath = \"/m\"\n";
    EXPECT_THAT(complaint(changed("slots = 4", "slots = 4\n" + keys) +
                          "[[share]]\nname = \"b\"\nsize = 4096\n" + keys),
                HasSubstr("path '/dev/shm/m' stands already on line 11"));
}

TEST_F(ConfigFile, AWrongRuleIsSaidAtItsPlace) {
    const auto with = [&](const std::string& rule) {
        return complaint(changed("name = \"linux\"", "name = \"linux\"\nrules = [" + rule + "]"));
    };
    EXPECT_THAT(with("{ deny = \"a[b\" }"), HasSubstr("f.toml:14:19: error: '[' without ']'"));
    EXPECT_THAT(with("{ allow = \"a\", deny = \"b\" }"), HasSubstr("both 'allow' and 'deny'"));
    EXPECT_THAT(with("{ may = [] }"), HasSubstr("a rule has 'allow' or 'deny'"));
    EXPECT_THAT(with("{ allow = \"a\", may = [] }"), HasSubstr("an allow of nothing"));
    EXPECT_THAT(with("{ allow = \"a\", may = [\"atach\"] }"), HasSubstr("did you mean 'attach'?"));
    EXPECT_THAT(with("{ allow = \"a\", may = [1] }"), HasSubstr("a number where a word belongs"));
    EXPECT_THAT(with("{ allow = \"a\", may = \"attach\" }"), HasSubstr("is not a list"));
    EXPECT_THAT(with("{ deny = \"a\", may = [\"attach\"] }"), HasSubstr("'may' in a rule that denies"));
    EXPECT_THAT(with("{ deny = \"a\", read_only = true }"), HasSubstr("'read_only' in a rule that denies"));
    EXPECT_THAT(with("{ allow = \"a\", readonly = true }"), HasSubstr("did you mean 'read_only'?"));
    EXPECT_THAT(with("{ allow = \"a\", read_only = 1 }"), HasSubstr("true or false"));
    EXPECT_THAT(with("{ allow = \"\" }"), HasSubstr("at least one character"));
    EXPECT_THAT(with("{ allow = 1 }"), HasSubstr("where a text belongs"));
    EXPECT_THAT(with("\"mail*\""), HasSubstr("a text where a table belongs"));
}

TEST_F(ConfigFile, OneRuleBeyondTheLimitIsAnError) {
    const auto with = [&](std::size_t count) {
        std::string rules = "rules = [";
        for (std::size_t i = 0; i < count; ++i) rules += "{deny=\"a\"},";
        return complaint(changed("name = \"linux\"", "name = \"linux\"\n" + rules + "]"));
    };
    EXPECT_EQ(with(max_rules), "no complaint");
    EXPECT_THAT(with(max_rules + 1), HasSubstr("more than 16384 of 'rules'"));
}

TEST_F(ConfigFile, WhoAVmIsHasToBeKnownAndItsOwn) {
    const auto with = [&](const std::string& text) { return complaint(good() + text); };
    EXPECT_THAT(with("[[vm]]\nname = \"b\"\nwho = {}\n"), HasSubstr("'who' names nobody"));
    EXPECT_THAT(with("[[vm]]\nname = \"b\"\nwho = { user = \"no-such-user\" }\n"),
                HasSubstr("no user 'no-such-user'"));
    EXPECT_THAT(with("[[vm]]\nname = \"b\"\nwho = { cgroup = \"slice\" }\n"), HasSubstr("begins with '/'"));
    EXPECT_THAT(with("[[vm]]\nname = \"b\"\n"), HasSubstr("attaches to nothing"));
    const std::string two =
        "[[vm]]\nname = \"b\"\nwho = { user = 0 }\n[[vm]]\nname = \"c\"\nwho = { user = \"root\" }\n";
    EXPECT_THAT(with(two), HasSubstr("who 'user 0' stands already on line 23"));
    EXPECT_EQ(with(two + fmt::format("socket = \"{}/c\"\n", folder_.path())), "no complaint");
    EXPECT_THAT(with("[[vm]]\nname = \"b\"\nwho = { user = 0 }\nmode = \"0660\"\n"),
                HasSubstr("'mode' without 'socket'"));
    EXPECT_THAT(with(fmt::format("[[vm]]\nname = \"b\"\nsocket = \"{}/linux\"\n", folder_.path())),
                HasSubstr("stands already"));
}

TEST_F(ConfigFile, LimitsInAllAndTheUserArrive) {
    const auto config = parse_config(
        "user = \"root\"\n[limits]\nshares = 3\nbytes = \"64G\"\npeers = 100\nvectors = 200\n" + good(),
        "f.toml");
    ASSERT_TRUE(config) << config.error().message();
    EXPECT_EQ(config->user, "root");
    EXPECT_EQ(config->totals.shares, 3U);
    EXPECT_EQ(config->totals.bytes, std::uint64_t{64} << 30);
    EXPECT_EQ(config->totals.peers, 100U);
    EXPECT_EQ(config->totals.vectors, 200U);
    EXPECT_THAT(complaint("user = \"no-such-user\"\n" + good()), HasSubstr("no user 'no-such-user'"));
}

TEST_F(ConfigFile, LimitsAreTakenUpToTheirBounds) {
    const auto with = [&](const std::string& limit) {
        return complaint("[limits]\n" + limit + "\n" + good());
    };
    EXPECT_EQ(with("shares = 256"), "no complaint");
    EXPECT_THAT(with("shares = 257"), HasSubstr("0 to 256"));
    EXPECT_THAT(with("peers = 0"), HasSubstr("1 to 65536"));
    EXPECT_THAT(with("peers = 65537"), HasSubstr("1 to 65536"));
    EXPECT_THAT(with("vectors = 65537"), HasSubstr("0 to 65536"));
    EXPECT_EQ(with("bytes = \"256T\""), "no complaint");
    EXPECT_THAT(with("bytes = \"257T\""), HasSubstr("beyond the limit"));
    EXPECT_THAT(complaint(good() + "[vm.limits]\nqueued_messages = 15\n"), HasSubstr("16 to 1048576"));
    EXPECT_THAT(complaint(good() + "[vm.limits]\npeer = 1\n"), HasSubstr("did you mean 'peers'?"));
}

}  // namespace
}  // namespace guestmem::share
