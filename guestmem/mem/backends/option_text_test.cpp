// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/option_text.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace guestmem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

BackendOptions parsed(std::string_view text) {
    auto options = parse_backend(text);
    EXPECT_TRUE(options) << (options ? "" : options.error().message());
    return options ? *options : BackendOptions{};
}

std::string refusal(std::string_view text) {
    const auto options = parse_backend(text);
    EXPECT_FALSE(options) << text;
    return options ? "" : options.error().message();
}

TEST(BackendText, SaysEveryPropertyOfAFile) {
    const BackendOptions options = parsed(
        "memory-backend-file,id=ram0,size=2G,mem-path=/var/lib/vm/a.ram,share=off,readonly=on,rom=off,"
        "offset=1M,align=2M,discard-data=on,pmem=off,prealloc=on,prealloc-threads=4,reserve=off,merge=off,"
        "dump=off,host-nodes=0-1,policy=bind");
    const BackendOptions expected{.kind = BackendKind::file,
                                  .id = "ram0",
                                  .size_bytes = std::uint64_t{2} << 30,
                                  .is_shared = false,
                                  .mem_path = "/var/lib/vm/a.ram",
                                  .is_readonly = true,
                                  .rom = Rom::off,
                                  .offset_bytes = 1 << 20,
                                  .align_bytes = 2 << 20,
                                  .is_discarded = true,
                                  .is_prealloc = true,
                                  .prealloc_threads = 4,
                                  .is_reserved = false,
                                  .is_mergeable = false,
                                  .is_dumped = false,
                                  .host_nodes = {0, 1},
                                  .policy = HostPolicy::bind};
    EXPECT_EQ(options, expected);
    EXPECT_EQ(parsed(to_text(options)), options);
}

TEST(BackendText, SaysEveryPropertyOfAMemfd) {
    const BackendOptions options =
        parsed("memory-backend-memfd,id=m,size=4M,hugetlb=on,hugetlbsize=2M,seal=off");
    EXPECT_TRUE(options.is_huge && !options.is_sealed);
    EXPECT_EQ(options.huge_page_bytes, 2U << 20);
    EXPECT_TRUE(is_shared(options)) << "unless something else is said";
}

TEST(BackendText, PrintsWhatIsNotTheDefault) {
    EXPECT_EQ(
        to_text(parsed("memory-backend-ram,size=1048576,id=a,merge=on,dump=on,reserve=on,policy=default")),
        "memory-backend-ram,id=a,size=1M");
    EXPECT_EQ(to_text(parsed("memory-backend-shm,size=1G,id=s,share=on")),
              "memory-backend-shm,id=s,size=1G,share=on");
    EXPECT_EQ(
        to_text(parsed(
            "memory-backend-ram,id=a,size=1,host-nodes=5,host-nodes=0-2,host-nodes=1,policy=interleave")),
        "memory-backend-ram,id=a,size=1,host-nodes=0-2,host-nodes=5,policy=interleave");
    EXPECT_EQ(to_text(parsed("memory-backend-physical,id=p,size=64K,mem-path=/dev/mem,offset=2G")),
              "memory-backend-physical,id=p,size=64K,mem-path=/dev/mem,offset=2G");
}

TEST(BackendText, TheTypeMayHaveItsName) {
    EXPECT_EQ(parsed("qom-type=memory-backend-ram,id=a,size=1").kind, BackendKind::ram);
    EXPECT_THAT(refusal("id=a,size=1"), HasSubstr("the type of the backend comes first"));
}

TEST(BackendText, AFlagMayStandAlone) {
    for (const char* yes : {"prealloc", "prealloc=on", "prealloc=yes", "prealloc=true", "prealloc=y"})
        EXPECT_TRUE(parsed(std::string{"memory-backend-ram,id=a,size=1,"} + yes).is_prealloc) << yes;
    for (const char* no : {"nomerge", "merge=off", "merge=no", "merge=false", "merge=n"})
        EXPECT_FALSE(parsed(std::string{"memory-backend-ram,id=a,size=1,"} + no).is_mergeable) << no;
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1,merge=maybe"),
                HasSubstr("'maybe' is neither on nor off"));
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1,merge="), HasSubstr("neither on nor off"));
}

TEST(BackendText, ACommaInAValueIsWrittenTwice) {
    const BackendOptions options = parsed("memory-backend-file,id=a,size=1,mem-path=/a,,b,,,,c=d");
    EXPECT_EQ(options.mem_path, "/a,b,,c=d");
    EXPECT_EQ(parsed(to_text(options)), options);
}

TEST(BackendText, AllMistakesAreToldWithTheirPlaces) {
    const std::string text = "memory-backend-file,id=1st,size=4X,shore=on,hugetlb=on,rom=sometimes";
    const std::string line = "   1 | " + text + "\n";
    const auto caret = [&](std::size_t column) {
        return line + "     | " + std::string(column - 1, ' ') + "^\n";
    };
    EXPECT_EQ(refusal(text),
              "backend:1:24: error: id '1st' is no name\n" + caret(24) +
                  "     = letters, digits, '-', '.', '_'; a letter first\n"
                  "backend:1:33: error: '4X' has an unknown unit; write B, K, M, G, T, P or E\n" +
                  caret(33) + "backend:1:36: error: memory-backend-file has no 'shore'\n" + caret(36) +
                  "     = did you mean share?\n"
                  "backend:1:45: error: memory-backend-file has no 'hugetlb'\n" +
                  caret(45) +
                  "     = memory-backend-memfd has\n"
                  "backend:1:60: error: 'sometimes' is no value of rom\n" +
                  caret(60) + "     = there are: auto, on, off");
}

TEST(BackendText, WhatIsMissingIsTold) {
    EXPECT_THAT(refusal(""), HasSubstr("no backend ''"));
    EXPECT_THAT(refusal("memory-backend-ram"), AllOf(HasSubstr("needs an id"), HasSubstr("needs a size")));
    EXPECT_THAT(refusal("memory-backend-ram,id=,size=1"), HasSubstr("id '' is no name"));
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size"), HasSubstr("'size' needs a value"));
    EXPECT_EQ(parsed("memory-backend-ram,id=a,size=1,").size_bytes, 1U);
    EXPECT_THAT(refusal("memory-backend-ran,id=a"), HasSubstr("did you mean memory-backend-ram?"));
    EXPECT_THAT(refusal("memory-backend-ram,,id=a,size=1"), HasSubstr("missing"));
}

TEST(BackendText, WhatIsSaidTwiceHasToBeTheSame) {
    EXPECT_EQ(parsed("memory-backend-ram,id=a,size=1K,size=1024").size_bytes, 1024U);
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1K,size=2K"), HasSubstr("'size' is said twice"));
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1K,merge=off,merge=on"),
                HasSubstr("'merge' is said twice"));
}

TEST(BackendText, QemusOwnPropertiesAreToldApartFromTypingErrors) {
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1,prealloc-context=t"), HasSubstr("prealloc-threads"));
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1,x-use-canonical-path-for-ramblock-id=on"),
                HasSubstr("migration"));
}

TEST(BackendText, NoThreadIsNone) {
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1,prealloc-threads=0"), HasSubstr("write 1 or more"));
    EXPECT_THAT(refusal("memory-backend-ram,id=a,size=1,prealloc-threads=4294967296"), HasSubstr("32 bits"));
    EXPECT_TRUE(parse_backend("memory-backend-ram,id=a,size=1,prealloc-threads=4294967295"));
}

TEST(BackendText, NodesAreNumbersAndRanges) {
    for (const char* bad :
         {"a", "", "-", "3-", "-3", "3-1", "0-1-2", "128", "0-128", "1,2", "99999999999999999999"})
        EXPECT_THAT(refusal(std::string{"memory-backend-ram,id=a,size=1,policy=bind,host-nodes="} + bad),
                    HasSubstr("node"))
            << bad;
    EXPECT_EQ(parsed("memory-backend-ram,id=a,size=1,host-nodes=127").host_nodes,
              std::vector<std::uint16_t>{127});
}

TEST(BackendText, ATextThatIsTooLongIsNotRead) {
    EXPECT_THAT(refusal("memory-backend-ram,id=" + std::string(max_backend_text_bytes, 'a')),
                HasSubstr("at most 16384"));
}

TEST(BackendText, WhatIsPrintedIsReadAgain) {
    std::mt19937_64 random{7};
    const auto flag = [&] { return random() % 2 == 0; };
    for (int i = 0; i < 5000; ++i) {
        BackendOptions options{.kind = static_cast<BackendKind>(random() % backend_kinds.size()),
                               .id = "a.b-c_9"};
        options.size_bytes = random() >> random() % 64;
        if (flag()) options.is_shared = flag();
        options.is_mergeable = flag();
        options.is_dumped = flag();
        const bool has_path = options.kind == BackendKind::file || options.kind == BackendKind::physical;
        if (has_path) {
            for (std::uint64_t length = random() % 20; length > 0; --length)
                options.mem_path += "/,=ab \xc3\xa4\n"[random() % 9];
            options.is_readonly = flag();
            options.rom = static_cast<Rom>(random() % 3);
            options.offset_bytes = random() % 3 * 4096;
        }
        if (options.kind == BackendKind::file) {
            options.align_bytes = random() % 2 << 21;
            options.is_discarded = flag();
            options.is_persistent = flag();
        }
        if (options.kind == BackendKind::memfd) {
            options.is_sealed = flag();
            options.is_huge = flag();
            options.huge_page_bytes = random() % 2 << 30;
        }
        if (options.kind != BackendKind::physical) {
            options.is_prealloc = flag();
            options.prealloc_threads = random() % 9;
            options.is_reserved = flag();
            for (std::uint16_t node = 0; node < max_host_nodes; ++node)
                if (random() % 8 == 0) options.host_nodes.push_back(node);
            options.policy = static_cast<HostPolicy>(random() % 4);
        }
        ASSERT_EQ(parsed(to_text(options)), options) << to_text(options);
    }
}

}  // namespace
}  // namespace guestmem
