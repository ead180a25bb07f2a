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

}  // namespace
}  // namespace guestmem::share
