// SPDX-License-Identifier: Apache-2.0
#include "guestmem/control/wire.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>

namespace guestmem::control {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

/// A request of exactly that many bytes.
std::string request_of(std::size_t count_bytes) {
    std::string line = R"({"v":1,"id":1,"call":"a","args":{"pad":""}})";
    line.insert(line.find("\"\"}}") + 1, count_bytes - line.size(), 'x');
    return line;
}

std::string answer_of(std::size_t count_bytes) {
    std::string line = R"({"v":1,"id":1,"result":{"pad":""}})";
    line.insert(line.find("\"\"}}") + 1, count_bytes - line.size(), 'x');
    return line;
}

/// A request whose brackets nest that deep, its own and those of args included.
std::string request_nested(std::size_t depth) {
    const std::size_t inner = depth - 2;
    return R"({"v":1,"id":1,"call":"a","args":{"x":)" + std::string(inner, '[') + std::string(inner, ']') +
           "}}";
}

TEST(DecodeRequest, TakesTheFieldsOfALine) {
    const auto request = decode_request(R"({"v":1,"id":7,"call":"share.stat","args":{"share":"mailbox"}})");

    ASSERT_TRUE(request) << request.error().message();
    EXPECT_EQ(request->id, 7U);
    EXPECT_EQ(request->call, "share.stat");
    EXPECT_EQ(request->arguments, R"({"share":"mailbox"})");
}

TEST(DecodeRequest, WithoutArgumentsHasAnEmptyObject) {
    EXPECT_EQ(decode_request(R"({"v":1,"id":0,"call":"a"})")->arguments, "{}");
}

TEST(DecodeRequest, PassesOverFieldsThatItDoesNotKnow) {
    EXPECT_TRUE(decode_request(R"({"later":[1,2],"v":1,"id":0,"call":"a"})"));
}

TEST(DecodeRequest, TakesTheLargestIdAndRefusesOnePast) {
    EXPECT_EQ(decode_request(R"({"v":1,"id":18446744073709551615,"call":"a"})")->id, top);
    EXPECT_FALSE(decode_request(R"({"v":1,"id":18446744073709551616,"call":"a"})"));
}

TEST(DecodeRequest, RefusesFieldsOfAnotherType) {
    constexpr std::array<std::string_view, 18> lines{
        R"({"v":"1","id":1,"call":"a"})",
        R"({"v":1.0,"id":1,"call":"a"})",
        R"({"v":-1,"id":1,"call":"a"})",
        R"({"v":null,"id":1,"call":"a"})",
        R"({"id":1,"call":"a"})",
        R"({"v":1,"id":"1","call":"a"})",
        R"({"v":1,"id":-1,"call":"a"})",
        R"({"v":1,"id":1.5,"call":"a"})",
        R"({"v":1,"id":1e3,"call":"a"})",
        R"({"v":1,"id":true,"call":"a"})",
        R"({"v":1,"call":"a"})",
        R"({"v":1,"id":1})",
        R"({"v":1,"id":1,"call":7})",
        R"({"v":1,"id":1,"call":""})",
        R"({"v":1,"id":1,"call":["a"]})",
        R"({"v":1,"id":1,"call":"a","args":[]})",
        R"({"v":1,"id":1,"call":"a","args":"{}"})",
        R"({"v":1,"id":1,"call":"a","args":null})",
    };
    for (const std::string_view line : lines) {
        const auto request = decode_request(line);
        ASSERT_FALSE(request) << line;
        EXPECT_EQ(request.error().code(), Errc::corrupt) << line;
    }
}

TEST(DecodeRequest, RefusesWhatIsNoObject) {
    for (const std::string_view line : {"", " ", "{", "}", "[]", "1", "null", "\"x\"", "{}{}", "{\"v\":1,}",
                                        "nan", "{'v':1}", "// x\n{}"}) {
        EXPECT_FALSE(decode_request(line)) << line;
    }
    EXPECT_FALSE(decode_request(std::string_view{"\0", 1}));
}

TEST(DecodeRequest, RefusesAnotherVersionAndNamesBoth) {
    for (const std::string_view version : {"0", "2", "18446744073709551615"}) {
        const auto request = decode_request(R"({"v":)" + std::string{version} + R"(,"id":1,"call":"a"})");
        ASSERT_FALSE(request);
        EXPECT_EQ(request.error().code(), Errc::unsupported);
        EXPECT_THAT(request.error().message(), HasSubstr("version " + std::string{version}));
        EXPECT_THAT(request.error().message(), HasSubstr("speaks 1"));
    }
}

TEST(DecodeRequest, RefusesTextThatIsNoUtf8) {
    for (const std::string_view bytes :
         {"\x80", "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", R"(\ud800)"}) {
        const std::string text{bytes};
        EXPECT_FALSE(decode_request(R"({"v":1,"id":1,"call":"a","args":{"x":")" + text + R"("}})")) << text;
        EXPECT_FALSE(decode_request(R"({"v":1,"id":1,"call":")" + text + R"("})")) << text;
    }
}

TEST(DecodeRequest, KeepsTextThatIsUtf8) {
    const auto request =
        decode_request("{\"v\":1,\"id\":1,\"call\":\"a\",\"args\":{\"x\":\"\\u0000\\ud83d\\ude00ß\"}}");
    ASSERT_TRUE(request);
    EXPECT_EQ(request->arguments, "{\"x\":\"\\u0000😀ß\"}");
}

TEST(DecodeRequest, TakesALineOfTheLimitAndRefusesOnePast) {
    ASSERT_EQ(request_of(max_request_bytes).size(), max_request_bytes);
    EXPECT_TRUE(decode_request(request_of(max_request_bytes)));

    const auto refused = decode_request(request_of(max_request_bytes + 1));

    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::out_of_range);
}

TEST(DecodeRequest, TakesANameOfTheLimitAndRefusesOnePast) {
    const auto named = [](std::size_t count) {
        return decode_request(R"({"v":1,"id":1,"call":")" + std::string(count, 'c') + R"("})");
    };
    EXPECT_EQ(named(max_call_bytes)->call.size(), max_call_bytes);
    EXPECT_FALSE(named(max_call_bytes + 1));
}

TEST(DecodeRequest, TakesNestingOfTheLimitAndRefusesOnePast) {
    EXPECT_TRUE(decode_request(request_nested(max_nesting)));
    const auto refused = decode_request(request_nested(max_nesting + 1));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("nests deeper"));
    EXPECT_FALSE(decode_request(request_nested(30'000)));
}

TEST(NestsDeeperThan, CountsBracketsOfBothKindsOutsideOfText) {
    EXPECT_FALSE(nests_deeper_than("", 0));
    EXPECT_FALSE(nests_deeper_than("1", 0));
    EXPECT_TRUE(nests_deeper_than("[", 0));
    EXPECT_FALSE(nests_deeper_than("[{}][{}]", 2));
    EXPECT_TRUE(nests_deeper_than("[{[]}]", 2));
    EXPECT_FALSE(nests_deeper_than(R"({"[[[[":"{{\"{{"})", 1));
    EXPECT_TRUE(nests_deeper_than(R"({"\\":[1]})", 1));
    EXPECT_FALSE(nests_deeper_than("]]]][", 1));
    EXPECT_FALSE(nests_deeper_than("\"\\", 0));
}

TEST(EncodeRequest, IsOneLineThatLeadsBack) {
    const std::string line =
        encode_request({.id = top, .call = "share.ring", .arguments = R"({"a":"x\ny"})"});

    EXPECT_EQ(line.find('\n'), line.size() - 1);
    const auto back = decode_request(std::string_view{line}.substr(0, line.size() - 1));
    ASSERT_TRUE(back);
    EXPECT_EQ(back->id, top);
    EXPECT_EQ(back->call, "share.ring");
    EXPECT_EQ(back->arguments, R"({"a":"x\ny"})");
}

TEST(DecodeAnswer, TakesAResultWithDescriptors) {
    const auto answer = decode_answer(R"({"v":1,"id":7,"result":{"size":4096},"fds":1})");
    ASSERT_TRUE(answer) << answer.error().message();
    EXPECT_EQ(answer->id, 7U);
    EXPECT_EQ(answer->result, R"({"size":4096})");
    EXPECT_EQ(answer->count_fds, 1U);
    EXPECT_FALSE(answer->error);
}

TEST(DecodeAnswer, TakesAnError) {
    const auto answer =
        decode_answer(R"({"v":1,"id":7,"error":{"code":"not_found","errno":2,"message":"no such share"}})");
    ASSERT_TRUE(answer);
    EXPECT_FALSE(answer->result);
    EXPECT_EQ(answer->error->code(), Errc::not_found);
    EXPECT_EQ(answer->error->os_error(), 2);
    EXPECT_EQ(answer->error->message(), "no such share");
}

TEST(DecodeAnswer, TakesACodeOfALaterVersionAsAnIoError) {
    const auto answer = decode_answer(R"({"v":1,"id":7,"error":{"code":"on_strike","message":"m"}})");
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->error->code(), Errc::io);
    EXPECT_EQ(answer->error->os_error(), 0);
}

TEST(DecodeAnswer, TakesAnErrnoThatNoKernelHasAsNone) {
    for (const std::string_view number : {"-1", "4096", "18446744073709551615", "1.5", "\"2\"", "0"}) {
        const auto answer = decode_answer(R"({"v":1,"id":7,"error":{"code":"io","message":"m","errno":)" +
                                          std::string{number} + "}}");
        ASSERT_TRUE(answer) << number;
        EXPECT_EQ(answer->error->os_error(), 0) << number;
    }
    EXPECT_EQ(decode_answer(R"({"v":1,"id":7,"error":{"code":"io","message":"m","errno":4095}})")
                  ->error->os_error(),
              4095);
}

TEST(DecodeAnswer, RefusesWhatIsNeitherResultNorError) {
    constexpr std::array<std::string_view, 11> lines{
        R"({"v":1,"id":7})",
        R"({"v":1,"id":7,"result":{},"error":{"code":"io","message":"m"}})",
        R"({"v":1,"id":7,"result":[]})",
        R"({"v":1,"id":7,"result":null})",
        R"({"v":1,"id":7,"error":"io"})",
        R"({"v":1,"id":7,"error":{}})",
        R"({"v":1,"id":7,"error":{"code":"io"}})",
        R"({"v":1,"id":7,"error":{"code":5,"message":"m"}})",
        R"({"v":1,"id":7,"error":{"code":"io","message":{}}})",
        R"({"v":1,"id":7,"result":{},"fds":-1})",
        R"({"v":1,"id":7,"result":{},"fds":"1"})",
    };
    for (const std::string_view line : lines) {
        const auto answer = decode_answer(line);
        ASSERT_FALSE(answer) << line;
        EXPECT_EQ(answer.error().code(), Errc::corrupt) << line;
    }
}

TEST(DecodeAnswer, TakesDescriptorsOfTheLimitAndRefusesOnePast) {
    EXPECT_EQ(decode_answer(R"({"v":1,"id":7,"result":{},"fds":32})")->count_fds, 32U);
    EXPECT_FALSE(decode_answer(R"({"v":1,"id":7,"result":{},"fds":33})"));
    EXPECT_FALSE(decode_answer(R"({"v":1,"id":7,"result":{},"fds":4294967297})"));
}

TEST(DecodeAnswer, TakesALineOfTheLimitAndRefusesOnePast) {
    ASSERT_EQ(answer_of(max_answer_bytes).size(), max_answer_bytes);
    EXPECT_TRUE(decode_answer(answer_of(max_answer_bytes)));
    const auto refused = decode_answer(answer_of(max_answer_bytes + 1));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::out_of_range);
}

TEST(EncodeAnswer, BytesOfAMessageThatAreNoUtf8AreReplaced) {
    Answer answer;
    answer.error = Error{Errc::io, "file '\xff\n'"};

    const std::string line = encode_answer(answer);

    EXPECT_EQ(line.find('\n'), line.size() - 1);
    const auto back = decode_answer(std::string_view{line}.substr(0, line.size() - 1));
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(back->error->message(), "file '\xef\xbf\xbd\n'");
}

/// Seeded random JSON, in the form in which the library writes it: keys sorted, no blanks.
class RandomJson {
public:
    explicit RandomJson(std::uint64_t seed) : random_(seed) {}

    std::string object(std::size_t depth) {
        std::string text = "{";
        for (std::uint64_t i = 0, count = below(4); i < count; ++i)
            text += (i == 0 ? "\"k" : ",\"k") + std::to_string(i) + "\":" + value(depth - 1);
        return text + "}";
    }
    std::string letters(std::size_t most) {
        std::string text;
        for (std::uint64_t left = below(most + 1); left > 0; --left)
            text += static_cast<char>('a' + below(26));
        return text;
    }
    std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
    std::uint64_t number() { return random_() >> below(64); }

private:
    std::string value(std::size_t depth) {
        switch (below(depth == 0 ? 5 : 7)) {
            case 0: return "null";
            case 1: return below(2) == 0 ? "true" : "false";
            case 2: return std::to_string(number());
            case 3: return std::to_string(-static_cast<std::int64_t>(below(1'000'000)) - 1);
            case 4: return "\"" + letters(20) + (below(3) == 0 ? R"(\"\\\n\u0001é)" : "") + "\"";
            case 5: {
                std::string text = "[";
                for (std::uint64_t i = 0, count = below(4); i < count; ++i)
                    text += (i == 0 ? "" : ",") + value(depth - 1);
                return text + "]";
            }
            default: return object(depth);
        }
    }

    std::mt19937_64 random_;
};

TEST(Wire, RandomRequestsAreReadBackAsTheyWere) {
    constexpr std::uint64_t seed = 40'001;
    RandomJson random{seed};
    for (int turn = 0; turn < 1'000; ++turn) {
        const Request request{.id = random.number(),
                              .call = "a" + random.letters(max_call_bytes - 1),
                              .arguments = random.object(6)};

        const std::string line = encode_request(request);

        ASSERT_EQ(line.find('\n'), line.size() - 1) << "seed " << seed << " turn " << turn;
        const auto back = decode_request(std::string_view{line}.substr(0, line.size() - 1));
        ASSERT_TRUE(back) << "seed " << seed << " turn " << turn << ": " << back.error().message();
        EXPECT_EQ(back->id, request.id) << "seed " << seed << " turn " << turn;
        EXPECT_EQ(back->call, request.call) << "seed " << seed << " turn " << turn;
        EXPECT_EQ(back->arguments, request.arguments) << "seed " << seed << " turn " << turn;
    }
}

TEST(Wire, RandomAnswersAreReadBackAsTheyWere) {
    constexpr std::uint64_t seed = 40'002;
    RandomJson random{seed};
    for (int turn = 0; turn < 1'000; ++turn) {
        Answer answer{.id = random.number(), .result = {}, .error = {}, .count_fds = 0};
        if (random.below(2) == 0) {
            answer.result = random.object(6);
            answer.count_fds = static_cast<std::uint32_t>(random.below(17));
        } else {
            answer.error = Error{static_cast<Errc>(random.below(12)), static_cast<int>(random.below(4'096)),
                                 random.letters(200)};
        }

        const std::string line = encode_answer(answer);

        const auto back = decode_answer(std::string_view{line}.substr(0, line.size() - 1));
        ASSERT_TRUE(back) << "seed " << seed << " turn " << turn << ": " << back.error().message();
        EXPECT_EQ(back->id, answer.id);
        EXPECT_EQ(back->result, answer.result) << "seed " << seed << " turn " << turn;
        EXPECT_EQ(back->count_fds, answer.count_fds);
        ASSERT_EQ(back->error.has_value(), answer.error.has_value());
        if (!answer.error) continue;
        EXPECT_EQ(back->error->code(), answer.error->code()) << "seed " << seed << " turn " << turn;
        EXPECT_EQ(back->error->os_error(), answer.error->os_error());
        EXPECT_EQ(back->error->message(), answer.error->message());
    }
}

TEST(Wire, ADamagedLineIsRefusedOrReadButNeverAborts) {
    constexpr std::uint64_t seed = 40'003;
    RandomJson random{seed};
    for (int turn = 0; turn < 5'000; ++turn) {
        std::string line =
            encode_request({.id = random.number(), .call = "call", .arguments = random.object(5)});
        line.pop_back();
        for (std::uint64_t left = random.below(4); left > 0; --left)
            line[random.below(line.size())] = static_cast<char>(random.below(256));
        line.resize(line.size() - random.below(2));

        const auto request = decode_request(line);
        static_cast<void>(decode_answer(line).has_value());

        if (request) {
            EXPECT_LE(request->call.size(), max_call_bytes) << "seed " << seed << " turn " << turn;
            EXPECT_FALSE(nests_deeper_than(request->arguments, max_nesting))
                << "seed " << seed << " turn " << turn;
        }
    }
}

}  // namespace
}  // namespace guestmem::control
