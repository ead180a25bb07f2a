// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/scatter_io.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using testing::GuestPages;
using testing::PageAccess;
using testing::TempFolder;

/// Text in pieces, and the pieces.
class Pieces {
public:
    explicit Pieces(const std::vector<std::string>& texts) : texts_(texts) {
        for (std::string& text : texts_)
            slices_.push_back({reinterpret_cast<std::byte*>(text.data()), text.size()});
    }
    [[nodiscard]] std::span<const IoSlice> slices() const { return slices_; }
    [[nodiscard]] std::string text() const {
        std::string all;
        for (const std::string& text : texts_) all += text + "|";
        return all;
    }

private:
    std::vector<std::string> texts_;
    std::vector<IoSlice> slices_;
};

struct Pair {
    Fd reader;
    Fd writer;
};
Pair make_pipe(int flags = 0) {
    std::array<int, 2> ends{};
    GM_CHECK(::pipe2(ends.data(), O_CLOEXEC | flags) == 0);
    return {Fd{ends[0]}, Fd{ends[1]}};
}
Pair make_sockets(int flags = 0) {
    std::array<int, 2> ends{};
    GM_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, ends.data()) == 0);
    return {Fd{ends[0]}, Fd{ends[1]}};
}
std::array<Pair, 2> make_streams(int pipe_flags = 0, int socket_flags = 0) {
    return {make_pipe(pipe_flags), make_sockets(socket_flags)};
}

TEST(ScatterIo, WritesPiecesInOrderAndReadsThemIntoOthers) {
    for (const Pair& stream : make_streams()) {
        const Pieces sent{{"a", "", "bcd", "efghij"}};
        Pieces received{{"....", "..", "........"}};

        const auto written = write_scattered(stream.writer, sent.slices());
        const auto read = read_scattered(stream.reader, received.slices());

        ASSERT_TRUE(written && read);
        EXPECT_EQ(*written, 10U);
        EXPECT_EQ(*read, 10U);
        EXPECT_EQ(received.text(), "abcd|ef|ghij....|");
    }
}

TEST(ScatterIo, WithAnOffsetThePositionStaysWhereItIs) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", "0123456789"), OpenMode::read_write).value();
    const Pieces sent{{"AB", "C"}};
    Pieces at_four{{"..", ".."}};
    Pieces at_start{{"...", "."}};

    EXPECT_EQ(write_scattered(file, sent.slices(), 5).value(), 3U);
    EXPECT_EQ(read_scattered(file, at_four.slices(), 4).value(), 4U);
    EXPECT_EQ(read_scattered(file, at_start.slices()).value(), 4U);

    EXPECT_EQ(at_four.text(), "4A|BC|");
    EXPECT_EQ(at_start.text(), "012|3|");
    EXPECT_EQ(write_scattered(file, sent.slices()).value(), 3U);  // at the position
    EXPECT_EQ(folder.read("f"), "0123ABCC89");
}

TEST(ScatterIo, AReadIsShortAtTheEndAndThenZero) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", "0123"), OpenMode::read).value();
    Pieces pieces{{"...", "..."}};

    EXPECT_EQ(read_scattered(file, pieces.slices()).value(), 4U);
    EXPECT_EQ(pieces.text(), "012|3..|");
    EXPECT_EQ(read_scattered(file, pieces.slices()).value(), 0U);
    EXPECT_EQ(read_scattered(file, pieces.slices(), 4).value(), 0U);
    EXPECT_EQ(read_scattered(file, pieces.slices(), 1'000'000).value(), 0U);
    EXPECT_EQ(read_scattered(file, {}).value(), 0U);
}

TEST(ScatterIo, MorePiecesThanTheKernelTakesMakeTheCallShort) {
    for (const std::size_t count : {max_io_slices, max_io_slices + 1}) {
        const Pair pipe = make_pipe();
        std::vector<std::byte> bytes(count, std::byte{7});
        std::vector<IoSlice> slices;
        for (std::byte& byte : bytes) slices.push_back({&byte, 1});

        EXPECT_EQ(write_scattered(pipe.writer, slices).value(), max_io_slices);
        std::ranges::fill(bytes, std::byte{0});
        EXPECT_EQ(read_scattered(pipe.reader, slices).value(), max_io_slices);
        EXPECT_EQ(std::ranges::count(bytes, std::byte{7}), static_cast<std::ptrdiff_t>(max_io_slices));
    }
}

TEST(ScatterIo, NothingToReadAndNoRoomToWriteAreToldApartFromFailure) {
    for (const Pair& stream : make_streams(O_NONBLOCK, SOCK_NONBLOCK)) {
        const Pieces pieces{{std::string(4096, 'x')}};
        const auto read = read_scattered(stream.reader, pieces.slices());
        ASSERT_FALSE(read);
        EXPECT_EQ(read.error().code(), Errc::unavailable);
        EXPECT_EQ(read.error().os_error(), EAGAIN);

        auto written = write_scattered(stream.writer, pieces.slices());
        while (written) written = write_scattered(stream.writer, pieces.slices());
        EXPECT_EQ(written.error().code(), Errc::unavailable);
        EXPECT_EQ(written.error().os_error(), EAGAIN);
    }
}

bool is_pending(int signal) {
    sigset_t pending;
    GM_CHECK(::sigpending(&pending) == 0);
    return ::sigismember(&pending, signal) == 1;
}

bool is_blocked(int signal) {
    sigset_t mask;
    GM_CHECK(::pthread_sigmask(SIG_SETMASK, nullptr, &mask) == 0);
    return ::sigismember(&mask, signal) == 1;
}

TEST(ScatterIo, WritingToNobodyIsAnErrorAndNoSignal) {
    for (Pair& stream : make_streams()) {
        stream.reader.reset();
        const Pieces pieces{{"a", "b"}};
        for (int turn = 0; turn < 2; ++turn) {
            const auto written = write_scattered(stream.writer, pieces.slices());
            ASSERT_FALSE(written);
            EXPECT_EQ(written.error().code(), Errc::unavailable);
            EXPECT_EQ(written.error().os_error(), EPIPE);
            EXPECT_FALSE(is_pending(SIGPIPE));
        }
        EXPECT_FALSE(is_blocked(SIGPIPE));
    }
}

TEST(ScatterIo, ASignalThatWaitsForOthersIsLeftToThem) {
    sigset_t pipe_signal;
    sigset_t before;
    ::sigemptyset(&pipe_signal);
    ::sigaddset(&pipe_signal, SIGPIPE);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &pipe_signal, &before), 0);
    ASSERT_EQ(::raise(SIGPIPE), 0);
    Pair pipe = make_pipe();
    pipe.reader.reset();
    const Pieces pieces{{"a"}};

    EXPECT_FALSE(write_scattered(pipe.writer, pieces.slices()));

    EXPECT_TRUE(is_pending(SIGPIPE));
    const timespec at_once{};
    EXPECT_EQ(::sigtimedwait(&pipe_signal, nullptr, &at_once), SIGPIPE);
    EXPECT_EQ(::pthread_sigmask(SIG_SETMASK, &before, nullptr), 0);
}

std::atomic<int> count_pipe_signals{0};

TEST(ScatterIo, AReaderThatGoesWhileAPipeIsWrittenRaisesNoSignal) {
    struct sigaction counting{};
    struct sigaction before{};
    counting.sa_handler = [](int) { ++count_pipe_signals; };
    ASSERT_EQ(::sigaction(SIGPIPE, &counting, &before), 0);
    count_pipe_signals = 0;
    Pair pipe = make_pipe();
    const int room = ::fcntl(pipe.writer.view().number(), F_GETPIPE_SZ);
    std::thread writer{[&] {
        const Pieces pieces{{std::string(static_cast<std::size_t>(room) + 1, 'x')}};
        const auto written = write_scattered(pipe.writer, pieces.slices());
        EXPECT_TRUE(written && *written == static_cast<std::size_t>(room)) << "what fitted was written";
    }};
    for (int waiting = 0; waiting < room; std::this_thread::yield())
        ASSERT_EQ(::ioctl(pipe.reader.view().number(), FIONREAD, &waiting), 0);
    pipe.reader.reset();
    writer.join();
    EXPECT_EQ(count_pipe_signals, 0);
    ASSERT_EQ(::sigaction(SIGPIPE, &before, nullptr), 0);
}

TEST(ScatterIo, ASignalThatIsSentToTheProcessMeanwhileArrivesAfterwards) {
    struct sigaction counting{};
    struct sigaction before{};
    counting.sa_handler = [](int) { ++count_pipe_signals; };
    ASSERT_EQ(::sigaction(SIGPIPE, &counting, &before), 0);
    sigset_t pipe_signal;
    sigset_t mask;
    ::sigemptyset(&pipe_signal);
    ::sigaddset(&pipe_signal, SIGPIPE);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &pipe_signal, &mask), 0);  // here; the writer takes it
    count_pipe_signals = 0;
    const Pair pipe = make_pipe();
    const int room = ::fcntl(pipe.writer.view().number(), F_GETPIPE_SZ);
    const std::size_t size_bytes = static_cast<std::size_t>(room) + 1;
    std::thread writer{[&] {
        ::pthread_sigmask(SIG_UNBLOCK, &pipe_signal, nullptr);
        const Pieces pieces{{std::string(size_bytes, 'x')}};
        const auto written = write_scattered(pipe.writer, pieces.slices());
        EXPECT_TRUE(written && *written == size_bytes);
        EXPECT_FALSE(is_blocked(SIGPIPE));
    }};

    // The pipe is full: the writer is in the middle of its call.
    for (int waiting = 0; waiting < room; std::this_thread::yield())
        ASSERT_EQ(::ioctl(pipe.reader.view().number(), FIONREAD, &waiting), 0);
    EXPECT_EQ(::kill(::getpid(), SIGPIPE), 0);
    EXPECT_EQ(count_pipe_signals, 0);
    Pieces received{{std::string(size_bytes, '.')}};
    EXPECT_TRUE(read_scattered(pipe.reader, received.slices()));
    writer.join();

    EXPECT_EQ(count_pipe_signals, 1);
    EXPECT_FALSE(is_pending(SIGPIPE));
    ASSERT_EQ(::pthread_sigmask(SIG_SETMASK, &mask, nullptr), 0);
    ASSERT_EQ(::sigaction(SIGPIPE, &before, nullptr), 0);
}

/// A limit of the size of files, for as long as it lives.
class FileSizeLimit {
public:
    explicit FileSizeLimit(rlim_t size_bytes) {
        GM_CHECK(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
        const rlimit limit{.rlim_cur = size_bytes, .rlim_max = before_.rlim_max};
        GM_CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
    }
    FileSizeLimit(const FileSizeLimit&) = delete;
    FileSizeLimit& operator=(const FileSizeLimit&) = delete;
    ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

private:
    rlimit before_{};
};

TEST(ScatterIo, WritingPastTheLimitOfFileSizesIsAnErrorAndNoSignal) {
    constexpr std::uint64_t limit_bytes = 1 << 20;
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", ""), OpenMode::read_write).value();
    const Pieces pieces{{"ab", "cd"}};
    const FileSizeLimit limit{limit_bytes};
    EXPECT_EQ(write_scattered(file, pieces.slices(), limit_bytes - 6).value(), 4U);
    EXPECT_EQ(write_scattered(file, pieces.slices(), limit_bytes - 3).value(), 3U) << "short at the limit";
    ASSERT_EQ(::lseek(file.view().number(), limit_bytes, SEEK_SET), static_cast<off_t>(limit_bytes));
    for (const std::optional<std::uint64_t> offset :
         {std::optional{limit_bytes}, std::optional{limit_bytes << 20}, std::optional<std::uint64_t>{}}) {
        const auto written = write_scattered(file, pieces.slices(), offset);
        ASSERT_FALSE(written);
        EXPECT_EQ(written.error().code(), Errc::out_of_range);
        EXPECT_EQ(written.error().os_error(), EFBIG);
        EXPECT_FALSE(is_pending(SIGXFSZ));
        EXPECT_FALSE(is_blocked(SIGXFSZ));
    }
}

TEST(ScatterIo, MemoryThatIsGoneIsAnErrorOrMakesTheCallShort) {
    const GuestPages guest{2};
    guest.protect(1, PageAccess::none);
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", std::string(8192, 'x')), OpenMode::read_write).value();
    const std::array gone{IoSlice{guest.page(1), 16}};
    const std::array last_is_gone{IoSlice{guest.data(), 16}, IoSlice{guest.page(1), 16}};

    for (const auto& done : {read_scattered(file, gone, 0), write_scattered(file, gone, 0)}) {
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().os_error(), EFAULT);
    }
    const auto read = read_scattered(file, last_is_gone, 0);
    ASSERT_TRUE(read);
    EXPECT_EQ(*read, 16U);
    EXPECT_EQ(guest.data()[15], std::byte{'x'});
    // Nothing or the first piece: file systems differ.
    const auto written = write_scattered(file, last_is_gone, 0);
    if (written) {
        EXPECT_EQ(*written, 16U);
    } else {
        EXPECT_EQ(written.error().os_error(), EFAULT);
    }
}

TEST(ScatterIo, AnOffsetThatNoFileHasIsOutOfRange) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", "text"), OpenMode::read_write).value();
    Pieces pieces{{"...."}};
    for (const std::uint64_t offset : {std::uint64_t{1} << 63, std::numeric_limits<std::uint64_t>::max()}) {
        const auto read = read_scattered(file, pieces.slices(), offset);
        const auto written = write_scattered(file, pieces.slices(), offset);
        ASSERT_FALSE(read || written);
        EXPECT_EQ(read.error().code(), Errc::out_of_range);
        EXPECT_EQ(written.error().code(), Errc::out_of_range);
    }
    EXPECT_EQ(read_scattered(file, pieces.slices(), (std::uint64_t{1} << 63) - 1 - 4).value(), 0U);
}

TEST(ScatterIo, AStreamHasNoOffsets) {
    for (const Pair& stream : make_streams()) {
        const Pieces pieces{{"a"}};
        EXPECT_FALSE(write_scattered(stream.writer, pieces.slices(), 0));
        EXPECT_FALSE(read_scattered(stream.reader, pieces.slices(), 0));
    }
}

TEST(ScatterIo, ADescriptorThatIsClosedIsAnError) {
    const Pieces pieces{{"a"}};
    EXPECT_FALSE(write_scattered(FdView{}, pieces.slices()));
    EXPECT_FALSE(write_scattered(FdView{}, pieces.slices(), 0));
    EXPECT_FALSE(read_scattered(FdView{}, pieces.slices()));
}

TEST(ScatterIo, WhateverFailsIsAnError) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", "text"), OpenMode::read_write).value();
    const Pieces pieces{{"ab", "cd"}};
    EXPECT_EQ(for_each_fault([&] { return read_scattered(file, pieces.slices(), 0); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return write_scattered(file, pieces.slices(), 0); }), 1U);
    for (const Pair& stream : make_streams()) {
        EXPECT_EQ(for_each_fault([&] { return write_scattered(stream.writer, pieces.slices()); }), 2U);
        EXPECT_EQ(for_each_fault([&] { return read_scattered(stream.reader, pieces.slices()); }), 1U);
    }
    EXPECT_EQ(for_each_fault([&] { return write_scattered(file, pieces.slices()); }), 2U);  // fstat, writev
}

}  // namespace
}  // namespace guestmem
