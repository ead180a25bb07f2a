// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/stream_writer.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "guestmem/mem/paging/stream_source.hpp"
#include "guestmem/mem/paging/testing/memory_pages.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::MemorySink;
using testing::MemorySource;
using testing::PageBytes;
using testing::random_image;
using testing::TempFolder;

std::pair<Fd, Fd> make_pipe() {
    std::array<int, 2> ends{-1, -1};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    return {Fd{ends[0]}, Fd{ends[1]}};
}

/// An offer with a state of that many bytes, each a function of its place.
std::byte state_byte(std::uint64_t at) { return static_cast<std::byte>(at * 7 + at / 251); }
PageOffer offer_with_state(std::uint64_t state_bytes) {
    PageOffer offer{.description = "the manifest", .state_bytes = state_bytes};
    offer.read_state = [](std::uint64_t offset_bytes, std::span<std::byte> bytes) -> Result<void> {
        for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = state_byte(offset_bytes + i);
        return {};
    };
    return offer;
}

/// Reads the whole stream, with a rest now and then when it is slow.
struct Received {
    std::optional<Error> error;
    PageBytes image;
    bool has_each_once = false;
    Greeting greeting;
    std::uint64_t state_bytes = 0;
    bool is_state_good = true;
};
Received receive(Fd fd, std::size_t image_bytes) {
    Received received;
    ReceiveOptions options{.patience = 20s};
    options.take_state = [&](std::span<const std::byte> bytes) -> Result<void> {
        for (const std::byte byte : bytes)
            received.is_state_good = received.is_state_good && byte == state_byte(received.state_bytes++);
        return {};
    };
    auto stream = StreamSource::open(std::move(fd), std::move(options));
    if (!stream) {
        received.error = stream.error();
        return received;
    }
    received.greeting = (*stream)->greeting();
    MemorySink sink{image_bytes};
    for (;;) {
        EXPECT_TRUE(*wait_readable((*stream)->arrivals(), Deadline{20s}));
        const auto more = (*stream)->take_arrivals(sink);
        if (!more) received.error = more.error();
        if (!more || !*more) break;
    }
    received.image = sink.image;
    received.has_each_once = sink.has_each_once();
    return received;
}

TEST(StreamWriter, AnImageComesThroughAPipeRawAndCompressed) {
    for (const std::uint64_t seed : {11U, 12U}) {
        for (const int level : {0, 1, 5}) {
            SCOPED_TRACE(::testing::Message() << "seed " << seed << ", level " << level);
            MemorySource source{random_image(1500, seed)};
            auto [reader, writer] = make_pipe();
            Received received;
            std::thread receiver{[&, fd = std::move(reader)]() mutable {
                received = receive(std::move(fd), source.image.size());
            }};
            PageOffer offer = offer_with_state(200'000);
            offer.zstd_level = level;
            offer.id.fill(std::byte{0x5a});

            const auto totals = write_stream(writer, source, offer);
            writer.reset();
            receiver.join();

            ASSERT_TRUE(totals) << totals.error().message();
            ASSERT_FALSE(received.error) << received.error->message();
            EXPECT_EQ(received.image, source.image);
            EXPECT_TRUE(received.has_each_once);
            EXPECT_EQ(received.greeting.description, "the manifest");
            EXPECT_EQ(received.greeting.id, offer.id);
            EXPECT_EQ(received.state_bytes, 200'000U);
            EXPECT_TRUE(received.is_state_good);
        }
    }
}

TEST(StreamWriter, ASlowWriterIsReadAsItComes) {
    class SlowSource : public MemorySource {
    public:
        using MemorySource::MemorySource;
        [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
            std::this_thread::sleep_for(10ms);
            return MemorySource::fetch(wanted, sink);
        }
    } source{random_image(2000, 3)};
    auto [reader, writer] = make_pipe();
    Received received;
    std::thread receiver{
        [&, fd = std::move(reader)]() mutable { received = receive(std::move(fd), source.image.size()); }};
    EXPECT_TRUE(write_stream(writer, source, {}));
    writer.reset();
    receiver.join();
    ASSERT_FALSE(received.error) << received.error->message();
    EXPECT_EQ(received.image, source.image);
}

TEST(StreamWriter, ZerosAreRunsAndCompressionIsSmaller) {
    const TempFolder folder;
    MemorySource zeros{PageBytes(std::size_t{64} << 20)};
    MemorySource patterns{PageBytes(std::size_t{1} << 20, std::byte{8})};
    const Fd file = open_file(folder.path_of("stream"), OpenMode::create_exclusive).value();

    const auto of_zeros = write_stream(file, zeros, {}).value();
    const auto raw = write_stream(file, patterns, {}).value();
    const auto compressed = write_stream(file, patterns, {.zstd_level = 3}).value();

    EXPECT_EQ(of_zeros.count_pages, 0U);
    EXPECT_EQ(of_zeros.written_bytes, 64U + 24U + 24U) << "hello, one run, end";
    EXPECT_EQ(raw.count_pages, 256U);
    EXPECT_GT(raw.written_bytes, std::uint64_t{1} << 20);
    EXPECT_LT(compressed.written_bytes, 4096U);
}

TEST(StreamWriter, ASourceIsAskedForABoundedPartAlsoWhereItHasZerosOnly) {
    class Zeros : public PageSource {
    public:
        [[nodiscard]] std::uint64_t size_bytes() const override { return std::uint64_t{1} << 30; }
        [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
            largest_bytes = std::max(largest_bytes, wanted.size_bytes);
            return sink.take_zeros(wanted);
        }
        std::uint64_t largest_bytes = 0;
    } source;
    const TempFolder folder;
    const Fd file = open_file(folder.path_of("stream"), OpenMode::create_exclusive).value();
    ASSERT_TRUE(write_stream(file, source, {}));
    EXPECT_EQ(source.largest_bytes, std::uint64_t{64} << 20);
}

TEST(StreamWriter, ProgressGrowsToTheWholeImage) {
    const TempFolder folder;
    MemorySource source{random_image(1000, 4)};
    const Fd file = open_file(folder.path_of("stream"), OpenMode::create_exclusive).value();
    std::uint64_t last = 0;
    ASSERT_TRUE(write_stream(file, source, {}, [&](std::uint64_t done) {
        EXPECT_GT(done, last);
        last = done;
    }));
    EXPECT_EQ(last, source.image.size());
}

TEST(StreamWriter, APushingSourceIsPassedOn) {
    MemorySource source{random_image(700, 5)};
    auto [first_reader, first_writer] = make_pipe();
    auto [second_reader, second_writer] = make_pipe();
    Received received;
    std::thread receiver{[&, fd = std::move(second_reader)]() mutable {
        received = receive(std::move(fd), source.image.size());
    }};
    std::thread relay{[from = std::move(first_reader), to = std::move(second_writer)]() mutable {
        auto stream = StreamSource::open(std::move(from), {.patience = 20s});
        ASSERT_TRUE(stream);
        EXPECT_TRUE(write_stream(to, **stream, {.zstd_level = 1}));
    }};
    EXPECT_TRUE(write_stream(first_writer, source, {}));
    first_writer.reset();
    relay.join();
    receiver.join();
    ASSERT_FALSE(received.error) << received.error->message();
    EXPECT_EQ(received.image, source.image);
    EXPECT_TRUE(received.has_each_once);
}

TEST(StreamWriter, TheReaderIsToldWhyASourceFailed) {
    MemorySource source{random_image(600, 6)};
    source.fails_at = source.image.size() / 2;
    auto [reader, writer] = make_pipe();
    Received received;
    std::thread receiver{
        [&, fd = std::move(reader)]() mutable { received = receive(std::move(fd), source.image.size()); }};
    const auto written = write_stream(writer, source, {});
    writer.reset();
    receiver.join();
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().message(), "the disk is gone");
    ASSERT_TRUE(received.error);
    EXPECT_EQ(received.error->code(), Errc::io);
    EXPECT_EQ(received.error->message(), "stream of pages: the disk is gone");
}

TEST(StreamWriter, ASourceThatLeavesPagesOutIsAnError) {
    class Lazy : public MemorySource {
    public:
        using MemorySource::MemorySource;
        [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
            return MemorySource::fetch({wanted.offset_bytes, page_size_bytes}, sink);
        }
    } source{random_image(10, 6)};
    const TempFolder folder;
    const Fd file = open_file(folder.path_of("stream"), OpenMode::create_exclusive).value();
    const auto written = write_stream(file, source, {});
    ASSERT_FALSE(written);
    EXPECT_THAT(written.error().message(), HasSubstr("has not given all"));
}

TEST(StreamWriter, AReaderThatGoesIsAnErrorAndNoSignal) {
    MemorySource source{random_image(600, 7)};
    auto [reader, writer] = make_pipe();
    std::thread goes{[fd = std::move(reader)]() mutable {
        std::array<std::byte, 4096> buffer{};
        EXPECT_TRUE(read_some(fd, buffer));
        fd.reset();
    }};
    const auto written = write_stream(writer, source, {});
    goes.join();
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code(), Errc::unavailable);
}

TEST(StreamWriter, WhatCannotBeOfferedIsRefusedBeforeAnythingIsWritten) {
    MemorySource source{random_image(1, 7)};
    MemorySource nothing{PageBytes{}};
    const TempFolder folder;
    const Fd file = open_file(folder.path_of("stream"), OpenMode::create_exclusive).value();
    EXPECT_TRUE(write_stream(file, source, {.description = std::string(max_description_bytes, 'd')}));
    const auto size_bytes = file_facts(file)->size_bytes;
    EXPECT_FALSE(write_stream(file, source, {.description = std::string(max_description_bytes + 1, 'd')}));
    EXPECT_FALSE(write_stream(file, source, {.state_bytes = 1}));
    EXPECT_FALSE(write_stream(file, source, offer_with_state(max_carried_state_bytes + 1)));
    EXPECT_FALSE(write_stream(file, source, {.zstd_level = max_zstd_level + 1}));
    EXPECT_FALSE(write_stream(file, nothing, {}));
    EXPECT_EQ(file_facts(file)->size_bytes, size_bytes);
}

TEST(StreamWriter, AStateThatCannotBeReadIsAnErrorOnBothSides) {
    MemorySource source{random_image(1, 7)};
    PageOffer offer{.state_bytes = 100'000};
    offer.read_state = [](std::uint64_t offset_bytes, std::span<std::byte>) -> Result<void> {
        if (offset_bytes > 0) return Error{Errc::io, "bad sector"};
        return {};
    };
    auto [reader, writer] = make_pipe();
    Received received;
    std::thread receiver{
        [&, fd = std::move(reader)]() mutable { received = receive(std::move(fd), source.image.size()); }};
    const auto written = write_stream(writer, source, offer);
    writer.reset();
    receiver.join();
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().message(), "read the state at 65536: bad sector");
    ASSERT_TRUE(received.error);
    EXPECT_THAT(received.error->message(), HasSubstr("bad sector"));
}

TEST(StreamWriter, WhateverFailsIsAnErrorAndLeavesNothing) {
    const TempFolder folder;
    MemorySource source{random_image(300, 8)};
    int number = 0;
    const auto count = for_each_fault([&]() -> Result<void> {
        const Fd file = GM_TRY(
            open_file(folder.path_of("stream" + std::to_string(number++)), OpenMode::create_exclusive));
        GM_TRY(write_stream(file, source, {}));
        return {};
    });
    EXPECT_GE(count, 3U);
}

}  // namespace
}  // namespace guestmem
