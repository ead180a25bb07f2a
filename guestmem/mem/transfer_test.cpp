// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/transfer.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/testing/lost_memory.hpp"
#include "guestmem/mem/testing/model_bulk.hpp"
#include "guestmem/mem/testing/test_map.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::counted_bytes;
using ::testing::HasSubstr;
using testing::is_all;
using ::testing::IsEmpty;
using testing::LostMemory;
using testing::LostMemoryTest;
using testing::ShortStream;
using testing::TempFolder;
using testing::TestMap;
using Numbers = std::vector<std::uint64_t>;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();

/// Two ends that are connected.
struct Ends {
    Fd near;
    Fd far;
};
Ends socket_pair() {
    std::array<int, 2> numbers{};
    GM_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, numbers.data()) == 0);
    return {Fd{numbers[0]}, Fd{numbers[1]}};
}
/// `near` reads what `far` writes.
Ends pipe_pair() {
    std::array<int, 2> numbers{};
    GM_CHECK(::pipe2(numbers.data(), O_CLOEXEC) == 0);
    return {Fd{numbers[0]}, Fd{numbers[1]}};
}
void set_nonblocking(const Fd& fd) { GM_CHECK(::fcntl(fd.view().number(), F_SETFL, O_NONBLOCK) == 0); }
void send_all(const Fd& fd, std::span<const std::byte> bytes) {
    GM_CHECK(::write(fd.view().number(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
}
std::vector<std::byte> last_of(const std::vector<std::byte>& bytes, std::size_t count) {
    return {bytes.end() - static_cast<std::ptrdiff_t>(count), bytes.end()};
}
std::vector<std::byte> first_of(const std::vector<std::byte>& bytes, std::size_t count) {
    return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count)};
}
std::uint64_t position_of(const Fd& fd) {
    return static_cast<std::uint64_t>(::lseek(fd.view().number(), 0, SEEK_CUR));
}

/// RAM of 128 bytes at 0x1000 and at 0x1080, ROM at 0x1100, RAM at 0x1180, a device at 0x1200, the last 128 bytes.
class TransferTest : public ::testing::Test {
protected:
    static TestMap machine() {
        TestMap memory;
        memory.ram(0x1000, 128).ram(0x1080, 128).rom(0x1100, 128).ram(0x1180, 128).device(0x1200, 128);
        memory.ram(last_address - 127, 128).count_up().start_tracking();
        return memory;
    }
    Fd file_of(std::span<const std::byte> bytes) {
        const std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
        return open_file(folder_.write("file", text), OpenMode::read_write).value();
    }
    [[nodiscard]] std::vector<std::byte> file_bytes() const {
        const std::string text = folder_.read("file");
        std::vector<std::byte> bytes(text.size());
        std::memcpy(bytes.data(), text.data(), text.size());
        return bytes;
    }
    /// What stands in the guest from 0x1000 on.
    [[nodiscard]] std::vector<std::byte> guest_bytes(std::size_t count) const {
        std::vector<std::byte> bytes(count);
        GM_CHECK(MapView{view_.map()}.read_bytes(GuestAddress{0x1000}, bytes));
        return bytes;
    }

    TempFolder folder_;
    TestMap memory_ = machine();
    GuestMemory view_{memory_.map()};
};

// ---- files ----

TEST_F(TransferTest, MovesAFileInAndOutAcrossBorders) {
    const std::vector<std::byte> content = counted_bytes(300, 100);
    const Fd file = file_of(content);
    const Transfer in = read_from(view_, GuestAddress{0x1010}, 200, FdStream{file});
    EXPECT_TRUE(in.status);
    EXPECT_EQ(in.count_done, 200U);
    EXPECT_EQ(guest_bytes(0xd8), [&] {
        std::vector<std::byte> expected = counted_bytes(16);
        expected.insert(expected.end(), content.begin(), content.begin() + 200);
        return expected;
    }());
    EXPECT_EQ(position_of(file), 200U);
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{0, 1}));
    EXPECT_EQ(memory_.take_dirty(1), (Numbers{0, 1}));

    const Transfer out = write_to(view_, GuestAddress{0x1070}, 0x100, FdStream{file});
    EXPECT_TRUE(out.status);
    EXPECT_EQ(out.count_done, 0x100U);
    EXPECT_EQ(position_of(file), 200U + 0x100U);
    const std::vector<std::byte> all = file_bytes();
    ASSERT_EQ(all.size(), 200U + 0x100U);
    EXPECT_TRUE(std::ranges::equal(std::span{all}.subspan(200, 0x10), memory_.bytes(0).last(0x10)));
    EXPECT_TRUE(std::ranges::equal(std::span{all}.subspan(210 + 6, 0x80), memory_.bytes(1)));
    EXPECT_TRUE(std::ranges::equal(std::span{all}.last(0x70), memory_.bytes(2).first(0x70)));  // ROM is read
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
}

TEST_F(TransferTest, LeavesThePositionAloneWhenItHasAnOffset) {
    const Fd file = file_of(counted_bytes(1000));
    GM_CHECK(::lseek(file.view().number(), 7, SEEK_SET) == 7);
    EXPECT_EQ(read_from(view_, GuestAddress{0x1000}, 256, FdStream{file, 500}).count_done, 256U);
    EXPECT_EQ(guest_bytes(256), counted_bytes(256, 500));
    EXPECT_EQ(write_to(view_, GuestAddress{0x1000}, 256, FdStream{file, 2000}).count_done, 256U);
    EXPECT_EQ(position_of(file), 7U);
    const std::vector<std::byte> all = file_bytes();
    ASSERT_EQ(all.size(), 2256U);
    EXPECT_TRUE(std::ranges::equal(std::span{all}.last(256), counted_bytes(256, 500)));
    EXPECT_TRUE(std::ranges::equal(std::span{all}.first(1000), counted_bytes(1000)));
    // Where no file reaches.
    const Transfer far = read_from(view_, GuestAddress{0x1000}, 8, FdStream{file, last_address});
    EXPECT_FALSE(far.status);
    EXPECT_EQ(far.count_done, 0U);
    const Transfer almost = read_from(view_, GuestAddress{0x1000}, 8, FdStream{file, last_address / 2 - 3});
    EXPECT_FALSE(almost.status);
}

TEST_F(TransferTest, SaysWhereAFileEnded) {
    const Fd file = file_of(counted_bytes(150, 9));
    const Transfer some = read_some_from(view_, GuestAddress{0x1000}, 256, FdStream{file, 0});
    EXPECT_TRUE(some.status);
    EXPECT_EQ(some.count_done, 150U);
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{0, 1}));
    EXPECT_EQ(memory_.take_dirty(1), Numbers{0});  // what arrived, not what was asked for
    const Transfer end = read_some_from(view_, GuestAddress{0x1000}, 256, FdStream{file, 150});
    EXPECT_TRUE(end.status);
    EXPECT_EQ(end.count_done, 0U);
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    const Transfer exact = read_from(view_, GuestAddress{0x1000}, 256, FdStream{file, 0});
    ASSERT_FALSE(exact.status);
    EXPECT_EQ(exact.status.error().code(), Errc::out_of_range);
    EXPECT_THAT(exact.status.error().message(), HasSubstr("ended after 150 of 256 bytes"));
    EXPECT_EQ(exact.count_done, 150U);
    EXPECT_EQ(guest_bytes(150), counted_bytes(150, 9));
}

TEST_F(TransferTest, TakesNoByteForMemoryThatRefusesThem) {
    const Fd file = file_of(counted_bytes(1000, 3));
    const std::vector<std::byte> rom(memory_.bytes(2).begin(), memory_.bytes(2).end());
    struct Case {
        std::uint64_t address;
        std::uint64_t count_done;
        std::string_view reason;
    };
    for (const Case& one :
         {Case{0x10f0, 16, "read_only"}, Case{0x1100, 0, "read_only"}, Case{0x11f0, 16, "device"},
          Case{0x0ff0, 0, "hole"}, Case{last_address - 15, 0, "overflow"}}) {
        SCOPED_TRACE(one.address);
        GM_CHECK(::lseek(file.view().number(), 0, SEEK_SET) == 0);
        const Transfer done = read_from(view_, GuestAddress{one.address}, 64, FdStream{file});
        ASSERT_FALSE(done.status);
        EXPECT_EQ(done.count_done, one.count_done);
        EXPECT_EQ(position_of(file), one.count_done);
        EXPECT_THAT(done.status.error().message(), HasSubstr(std::string{one.reason}));
        EXPECT_THAT(done.status.error().message(), HasSubstr("write at address"));
    }
    EXPECT_EQ(read_some_from(view_, GuestAddress{last_address - 15}, 64, FdStream{file, 0}).count_done, 16U);
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(2), rom));
    const Transfer out = write_to(view_, GuestAddress{0x11f0}, 64, FdStream{file, 0});
    EXPECT_EQ(out.count_done, 16U);
    EXPECT_THAT(out.status.error().message(), HasSubstr("read at address 0x1200"));
    for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{0x1200}, last_address}) {
        ShortStream nothing{{}, 1};
        EXPECT_TRUE(read_from(view_, GuestAddress{address}, 0, FdStream{file}).status);
        EXPECT_TRUE(write_some_to(view_, GuestAddress{address}, 0, FdStream{FdView{}}).status);
        EXPECT_TRUE(
            read_some_from(view_, GuestAddress{address}, 0, static_cast<ByteSource&>(nothing)).status);
        EXPECT_TRUE(write_to(view_, GuestAddress{address}, 0, static_cast<ByteSink&>(nothing)).status);
    }
}

TEST_F(TransferTest, MovesMorePiecesThanOneSystemCallTakes) {
    constexpr std::uint64_t count_regions = 2 * 1024 + 100;
    TestMap memory;
    for (std::uint64_t i = 0; i < count_regions; ++i) memory.shifted_ram(i * 8, 8, 0);
    memory.start_tracking();
    MapView view{*memory.map()};
    const std::vector<std::byte> content = counted_bytes(count_regions * 8, 1);
    const Fd file = file_of(content);
    EXPECT_EQ(read_some_from(view, GuestAddress{0}, content.size(), FdStream{file, 0}).count_done, 1024U * 8);
    EXPECT_EQ(memory.take_dirty(1023), Numbers{0});
    EXPECT_THAT(memory.take_dirty(1024), IsEmpty());
    const Transfer all = read_from(view, GuestAddress{0}, content.size(), FdStream{file, 0});
    EXPECT_TRUE(all.status);
    EXPECT_EQ(all.count_done, content.size());
    std::vector<std::byte> there(content.size());
    ASSERT_TRUE(view.read_bytes(GuestAddress{0}, there));
    EXPECT_EQ(there, content);
    EXPECT_EQ(write_to(view, GuestAddress{4}, content.size() - 4, FdStream{file, 0}).count_done,
              content.size() - 4);
    EXPECT_EQ(first_of(file_bytes(), content.size() - 4), last_of(content, content.size() - 4));
}

// ---- sockets and pipes ----

TEST_F(TransferTest, GoesOnUntilAllIsThereThoughTheOtherSideSendsALittleAtATime) {
    for (const bool is_socket : {true, false}) {
        SCOPED_TRACE(is_socket);
        const std::vector<std::byte> content = counted_bytes(240, is_socket ? 40 : 50);
        Ends ends = is_socket ? socket_pair() : pipe_pair();
        std::thread sender{[&] {
            for (std::size_t done = 0; done < content.size(); done += 3) {
                send_all(ends.far, std::span{content}.subspan(done, 3));
                if (done % 30 == 0) std::this_thread::sleep_for(std::chrono::microseconds{200});
            }
        }};
        const Transfer done = read_from(view_, GuestAddress{0x1000}, 240, FdStream{ends.near});
        sender.join();
        EXPECT_TRUE(done.status);
        EXPECT_EQ(done.count_done, 240U);
        EXPECT_EQ(guest_bytes(240), content);
        // One call takes what there is, from the one region on into the other.
        send_all(ends.far, counted_bytes(6, 77));
        EXPECT_EQ(read_some_from(view_, GuestAddress{0x107e}, 100, FdStream{ends.near}).count_done, 6U);
        EXPECT_EQ(last_of(guest_bytes(0x84), 6), counted_bytes(6, 77));
    }
}

TEST_F(TransferTest, GoesOnByTheBytesDoneWhenADescriptorDoesNotBlock) {
    const Ends ends = socket_pair();
    set_nonblocking(ends.near);
    const std::vector<std::byte> content = counted_bytes(200, 60);
    std::uint64_t done = 0;
    int count_turns = 0;
    for (std::size_t sent = 0; done < 200; ++count_turns) {
        ASSERT_LT(count_turns, 10);
        const Transfer part = read_from(view_, GuestAddress{0x1000 + done}, 200 - done, FdStream{ends.near});
        done += part.count_done;
        EXPECT_EQ(done, sent);
        if (done == 200) break;
        ASSERT_FALSE(part.status);
        EXPECT_EQ(part.status.error().code(), Errc::unavailable);
        EXPECT_EQ(part.status.error().os_error(), EAGAIN);
        send_all(ends.far, std::span{content}.subspan(sent, 50));
        sent += 50;
    }
    EXPECT_EQ(count_turns, 4);
    EXPECT_EQ(guest_bytes(200), content);

    // And the other way: until the socket is full.
    set_nonblocking(ends.far);
    std::vector<std::byte> taken;
    std::uint64_t written = 0;
    for (int turn = 0; turn < 100000; ++turn) {
        const Transfer part = write_to(view_, GuestAddress{0x1000}, 200, FdStream{ends.near});
        written += part.count_done;
        if (part.status) continue;
        EXPECT_EQ(part.status.error().code(), Errc::unavailable);
        break;
    }
    std::array<std::byte, 4096> buffer{};
    for (ssize_t count = 1; count > 0;) {
        count = ::read(ends.far.view().number(), buffer.data(), buffer.size());
        if (count > 0) taken.insert(taken.end(), buffer.begin(), buffer.begin() + count);
    }
    ASSERT_EQ(taken.size(), written);
    for (std::size_t i = 0; i < taken.size(); ++i) ASSERT_EQ(taken[i], content[i % 200]) << i;
}

TEST_F(TransferTest, TellsTheEndOfAStreamAndAPeerThatIsGone) {
    for (const bool is_socket : {true, false}) {
        SCOPED_TRACE(is_socket);
        Ends ends = is_socket ? socket_pair() : pipe_pair();
        send_all(ends.far, counted_bytes(10, 5));
        ends.far.reset();
        const Transfer end = read_from(view_, GuestAddress{0x107b}, 100, FdStream{ends.near});
        ASSERT_FALSE(end.status);
        EXPECT_EQ(end.status.error().code(), Errc::out_of_range);
        EXPECT_EQ(end.count_done, 10U);
        EXPECT_EQ(read_some_from(view_, GuestAddress{0x1000}, 1, FdStream{ends.near}).count_done, 0U);

        // Writing to nobody is an error, not the end of this program by SIGPIPE.
        Ends gone = is_socket ? socket_pair() : pipe_pair();
        gone.near.reset();
        const Transfer out = write_to(view_, GuestAddress{0x1000}, 100, FdStream{gone.far});
        ASSERT_FALSE(out.status);
        EXPECT_EQ(out.status.error().os_error(), EPIPE);
        EXPECT_EQ(out.count_done, 0U);
    }
}

TEST_F(TransferTest, FailsWithEachSystemCallAndMarksAllThatWasAskedOf) {
    const Fd file = file_of(counted_bytes(300));
    std::uint64_t count = testing::for_each_fault(
        [&] {
            auto done = read_from(view_, GuestAddress{0x1040}, 0x60, FdStream{file, 0});
            EXPECT_EQ(done.count_done, done.status ? 0x60U : 0U);
            return std::move(done.status);
        },
        [&] {
            EXPECT_EQ(memory_.take_dirty(0), Numbers{1});
            EXPECT_EQ(memory_.take_dirty(1), Numbers{0});
        });
    EXPECT_EQ(count, 1U);
    count = testing::for_each_fault(
        [&] { return write_to(view_, GuestAddress{0x1040}, 0x60, FdStream{file, 0}).status; });
    EXPECT_EQ(count, 1U);
    const Ends ends = socket_pair();
    count = testing::for_each_fault(
        [&] { return write_to(view_, GuestAddress{0x1040}, 0x60, FdStream{ends.far}).status; });
    EXPECT_GE(count, 1U);
    EXPECT_FALSE(read_from(view_, GuestAddress{0x1000}, 8, FdStream{FdView{}}).status);
    EXPECT_THAT(memory_.take_dirty(1), IsEmpty());
}

TEST_F(TransferTest, ADirectReadBehindTheEndOfAFileMarksAllThatWasAsked) {
    TempFolder folder;
    const std::string path = folder.write("disk", std::string(100, 'x'));
    const Fd file{::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)};
    if (!file.is_open()) GTEST_SKIP() << "SKIPPED: the file system of temporary files has no O_DIRECT";
    constexpr std::uint64_t size = 16 * page_size_bytes;
    TestMap guest;
    guest.ram(0, size).start_tracking();
    GuestMemory memory{guest.map()};
    const Transfer some = read_some_from(memory, GuestAddress{0}, size, FdStream{file, 0});
    ASSERT_TRUE(some.status) << some.status.error().message();
    EXPECT_EQ(some.count_done, 100U);
    EXPECT_EQ(guest.take_dirty(0).size(), size / testing::dirty_page_bytes) << "the disk writes whole blocks";
}

TEST_F(TransferTest, ADatagramSocketMarksAllThatWasAsked) {
    // One with a wrong checksum has been copied when the socket says that it has nothing.
    std::array<int, 2> numbers{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, numbers.data()), 0);
    const Fd near{numbers[0]};
    const Fd far{numbers[1]};
    EXPECT_FALSE(read_some_from(view_, GuestAddress{0x1000}, 256, FdStream{near}).status);
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{0, 1}));
}

TEST_F(TransferTest, AStreamIsAskedForLittleAtATime) {
    const Ends ends = socket_pair();
    constexpr std::uint64_t size = std::uint64_t{1} << 20;
    TestMap guest;
    guest.ram(0, size).start_tracking();
    GuestMemory memory{guest.map()};
    send_all(ends.far, counted_bytes(1));
    EXPECT_EQ(read_some_from(memory, GuestAddress{0}, size, FdStream{ends.near}).count_done, 1U);
    EXPECT_EQ(guest.take_dirty(0).size(), 64 * 1024 / testing::dirty_page_bytes);
}

TEST_F(TransferTest, ASocketThatHasNothingMarksNothing) {
    const Ends ends = socket_pair();
    set_nonblocking(ends.near);
    const Transfer none = read_some_from(view_, GuestAddress{0x1000}, 256, FdStream{ends.near});
    EXPECT_EQ(none.status.error().code(), Errc::unavailable);
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
    send_all(ends.far, counted_bytes(10));
    EXPECT_EQ(read_some_from(view_, GuestAddress{0x1000}, 256, FdStream{ends.near}).count_done, 10U);
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{0, 1}));
}

// ---- streams ----

TEST_F(TransferTest, PutsTheBytesOfAShortSourceSideBySideAcrossABorder) {
    const std::vector<std::byte> content = counted_bytes(6, 1);
    ShortStream source{content, 3};
    const Transfer done = read_from(view_, GuestAddress{0x107e}, 6, static_cast<ByteSource&>(source));
    EXPECT_TRUE(done.status);
    EXPECT_EQ(done.count_done, 6U);
    EXPECT_EQ(last_of(guest_bytes(0x84), 6), content);
    EXPECT_EQ(memory_.take_dirty(0), Numbers{1});
    EXPECT_EQ(memory_.take_dirty(1), Numbers{0});
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(1).subspan(4), last_of(counted_bytes(256), 124)));
}

TEST_F(TransferTest, MovesStreamsOfAnyLengthAFewBytesAtATime) {
    TestMap memory;
    memory.ram(0, 5000).ram(5000, 9000).start_tracking();
    GuestMemory view{memory.map()};
    for (const std::size_t at_a_time : {1U, 3U, 4095U, 4096U, 4097U, 100000U}) {
        for (const std::size_t size : {1U, 4096U, 4097U, 13999U}) {
            SCOPED_TRACE(::testing::Message() << size << " bytes, " << at_a_time << " at a time");
            const std::vector<std::byte> content = counted_bytes(size, at_a_time);
            ShortStream source{content, at_a_time};
            EXPECT_EQ(read_from(view, GuestAddress{1}, size, static_cast<ByteSource&>(source)).count_done,
                      size);
            ShortStream sink{std::vector<std::byte>(size), at_a_time};
            const Transfer out = write_to(view, GuestAddress{1}, size, static_cast<ByteSink&>(sink));
            EXPECT_TRUE(out.status);
            EXPECT_EQ(out.count_done, size);
            EXPECT_TRUE(std::ranges::equal(sink.done(), content));
        }
    }
}

TEST_F(TransferTest, AsksAStreamForNoMoreThanCanBeWritten) {
    ShortStream source{counted_bytes(100, 7), 100};
    const Transfer in = read_from(view_, GuestAddress{0x10f0}, 100, static_cast<ByteSource&>(source));
    EXPECT_FALSE(in.status);
    EXPECT_EQ(in.count_done, 16U);
    EXPECT_EQ(source.done().size(), 16U);
    const Transfer refused = read_from(view_, GuestAddress{0x1100}, 1, static_cast<ByteSource&>(source));
    EXPECT_FALSE(refused.status);
    EXPECT_EQ(source.done().size(), 16U);
    ShortStream full{std::vector<std::byte>(10), 4};
    const Transfer out = write_to(view_, GuestAddress{0x1000}, 100, static_cast<ByteSink&>(full));
    EXPECT_EQ(out.status.error().code(), Errc::out_of_range);
    EXPECT_EQ(out.count_done, 10U);
}

/// Says what it is told to, whatever it is given.
class LyingStream final : public ByteSource, public ByteSink {
public:
    explicit LyingStream(Result<std::size_t> answer) : answer_(std::move(answer)) {}
    [[nodiscard]] Result<std::size_t> read_some(std::span<std::byte> to) override {
        std::ranges::fill(to, std::byte{0xee});
        return answer_;
    }
    [[nodiscard]] Result<std::size_t> write_some(std::span<const std::byte>) override { return answer_; }

private:
    Result<std::size_t> answer_;
};

TEST_F(TransferTest, DoesNotBelieveAStreamThatClaimsMoreThanItWasGiven) {
    const std::vector<std::byte> before = guest_bytes(256);
    for (const std::uint64_t claim : {std::uint64_t{101}, std::uint64_t{4097}, last_address}) {
        SCOPED_TRACE(claim);
        LyingStream stream{static_cast<std::size_t>(claim)};
        for (const Transfer& done :
             {read_from(view_, GuestAddress{0x1000}, 100, static_cast<ByteSource&>(stream)),
              write_to(view_, GuestAddress{0x1000}, 100, static_cast<ByteSink&>(stream))}) {
            ASSERT_FALSE(done.status);
            EXPECT_EQ(done.status.error().code(), Errc::corrupt);
            EXPECT_EQ(done.count_done, 0U);
        }
    }
    EXPECT_EQ(guest_bytes(256), before);
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
}

TEST_F(TransferTest, HandsOnWhatAStreamFailedWith) {
    LyingStream stream{Error{Errc::io, "the tape is torn"}};
    const Transfer in = read_from(view_, GuestAddress{0x1000}, 100, static_cast<ByteSource&>(stream));
    EXPECT_EQ(in.status.error().message(), "the tape is torn");
    const Transfer out = write_to(view_, GuestAddress{0x1000}, 100, static_cast<ByteSink&>(stream));
    EXPECT_EQ(out.status.error().message(), "the tape is torn");
    EXPECT_THAT(memory_.take_dirty(0), IsEmpty());
}

// ---- memory that the host has lost ----

class TransferLostTest : public LostMemoryTest {
protected:
    static constexpr std::uint64_t good_bytes = 2 * page_size_bytes;
    TransferLostTest() { lost_.lose_from(2); }

    TempFolder folder_;
    Fd file_ = open_file(folder_.write("file", std::string(20000, 'x')), OpenMode::read_write).value();
    GuestMemory memory_{lost_.map().map()};
};

TEST_P(TransferLostTest, ADescriptorMovesTheBytesBeforeTheLostPage) {
    const Transfer in = read_from(memory_, LostMemory::page(0), good_bytes + 100, FdStream{file_, 0});
    ASSERT_FALSE(in.status);
    EXPECT_EQ(in.status.error().os_error(), EFAULT);
    EXPECT_EQ(in.count_done, good_bytes);
    EXPECT_TRUE(is_all(lost_.bytes().first(good_bytes), std::byte{'x'}));
    const Transfer nothing = read_from(memory_, LostMemory::page(2), 100, FdStream{file_, 0});
    EXPECT_EQ(nothing.status.error().os_error(), EFAULT);
    EXPECT_EQ(nothing.count_done, 0U);

    ASSERT_TRUE(memory_.fill(LostMemory::page(0), std::byte{'y'}, good_bytes));
    const Transfer out = write_to(memory_, LostMemory::page(0), good_bytes + 100, FdStream{file_, 0});
    ASSERT_FALSE(out.status);
    EXPECT_EQ(out.status.error().os_error(), EFAULT);
    EXPECT_EQ(out.count_done, good_bytes);
    const std::string text = folder_.read("file");
    EXPECT_EQ(text.find_first_not_of('y'), good_bytes);
    EXPECT_EQ(text.find_first_not_of('x', good_bytes), std::string::npos);
    EXPECT_EQ(text.size(), 20000U);
}

TEST_P(TransferLostTest, AShortReadMarksWhatTheKernelWroteAndDidNotCount) {
    // A stream socket gives the first message and keeps the second; of that it has copied up to the lost page.
    const Ends ends = socket_pair();
    for (const std::size_t size_bytes : {std::size_t{100}, std::size_t{good_bytes}}) {
        const std::string message(size_bytes, 'x');
        ASSERT_EQ(::send(ends.far.view().number(), message.data(), size_bytes, 0),
                  static_cast<ssize_t>(size_bytes));
    }
    const Transfer in = read_some_from(memory_, LostMemory::page(0), good_bytes + 100, FdStream{ends.near});
    ASSERT_TRUE(in.status) << in.status.error().message();
    EXPECT_EQ(in.count_done, 100U);
    EXPECT_FALSE(is_all(lost_.bytes().subspan(page_size_bytes, page_size_bytes), std::byte{0}))
        << "it wrote on";
    EXPECT_THAT(lost_.map().take_dirty(LostMemory::number), ::testing::IsSupersetOf(Numbers{0, 1}));
}

TEST_P(TransferLostTest, AStreamGetsTheBytesBeforeTheLostPage) {
    ShortStream source{counted_bytes(300), 300};
    const GuestAddress address{LostMemory::page(2).value() - 100};
    const Transfer in = read_from(memory_, address, 300, static_cast<ByteSource&>(source));
    ASSERT_FALSE(in.status);
    EXPECT_THAT(in.status.error().message(), HasSubstr("fault"));
    EXPECT_EQ(in.count_done, 100U);
    EXPECT_TRUE(std::ranges::equal(lost_.bytes().subspan(good_bytes - 100, 100), counted_bytes(100)));

    ShortStream sink{std::vector<std::byte>(300), 300};
    const Transfer out = write_to(memory_, address, 300, static_cast<ByteSink&>(sink));
    ASSERT_FALSE(out.status);
    EXPECT_THAT(out.status.error().message(), HasSubstr("fault"));
    EXPECT_EQ(out.count_done, 100U);
    EXPECT_TRUE(std::ranges::equal(sink.done(), counted_bytes(100)));
}

INSTANTIATE_TEST_SUITE_P(, TransferLostTest, testing::all_ways_to_lose());

}  // namespace
}  // namespace guestmem
