// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_frame.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/fd.hpp"

/// The receiving end of frames: what a source of a server and a source of a stream have in common.
///
/// Concepts: who receives reads until a deadline, puts frames together, and asks a judge before pages go on. The sums
/// in frames find what hardware does; a judge with sums of its own, such as a template's, finds a sender that lies.
/// Contract: the first error of the other side stays: each later call is that error. A read ends at its deadline, also
/// when a byte comes now and then; what take_state takes of its time moves it by so much. A greeting with what was not
/// asked for is refused before more of it is read. The other side may be hostile.
/// Threads: one at a time.
/// Limits: see FrameParser; a description is held whole, a state is handed on in pieces. A state has the patience and a
/// second for each min_state_rate_bytes: who asks a stranger for one waits 256 s more at most.
/// Known holes: descriptors that ride on a socket's bytes are closed by the kernel, unseen; a last close that waits
/// (SO_LINGER, a file of a FUSE server) makes the read wait, past the deadline.

namespace guestmem {

/// Asked about all that arrives, before it goes on.
class PageJudge {
public:
    PageJudge() = default;
    PageJudge(const PageJudge&) = delete;
    PageJudge& operator=(const PageJudge&) = delete;
    virtual ~PageJudge() = default;

    /// Whole pages, max_piece_bytes at most; an error ends the source.
    [[nodiscard]] virtual Result<void> check_pages(std::uint64_t offset_bytes,
                                                   std::span<const std::byte> pages) = 0;
    /// Of any size within the image.
    [[nodiscard]] virtual Result<void> check_zeros(ImagePart part) = 0;
};

/// At least so fast comes the state of a greeting.
inline constexpr std::uint64_t min_state_rate_bytes = std::uint64_t{16} << 20;

struct ReceiveOptions {
    /// How long the other side has for one call: a fetch, and the greeting without its state. None is too long.
    std::chrono::milliseconds patience{2000};
    std::uint64_t max_image_bytes = max_paged_image_bytes;
    std::optional<ImageId> expected_id = {};
    /// Outlives the source.
    PageJudge* judge = nullptr;
    /// Gets the state in its order. Without it there is none, or it is passed over.
    std::function<Result<void>(std::span<const std::byte> bytes)> take_state = {};
};

/// What the other side has said of the image.
struct Greeting {
    ImageId id = {};
    std::uint64_t image_bytes = 0;
    bool has_zstd = false;
    std::string description;
    std::uint64_t state_bytes = 0;
};

class PageReceiver {
public:
    /// `from` says in errors who sends: "page server /run/x".
    PageReceiver(FrameFlow flow, std::string from, ReceiveOptions options)
        : parser_(flow),
          is_stream_(flow == FrameFlow::stream),
          from_(std::move(from)),
          options_(std::move(options)) {}

    /// Reads hello, description and state; when there was a question, no more than it asked for.
    [[nodiscard]] Result<void> read_greeting(FdView fd, const Deadline& deadline,
                                             const std::optional<JoinFrame>& asked = {});
    [[nodiscard]] const Greeting& greeting() const { return greeting_; }
    [[nodiscard]] const ReceiveOptions& options() const { return options_; }

    /// What was read already; nothing when there is no whole frame. An error frame is an error.
    [[nodiscard]] Result<std::optional<PageFrame>> next_frame();
    /// Reads until there is one.
    [[nodiscard]] Result<PageFrame> wait_frame(FdView fd, const Deadline& deadline);
    /// One read, which blocks as the descriptor does.
    [[nodiscard]] Result<void> read_once(FdView fd);
    /// Bytes that nobody has taken.
    [[nodiscard]] bool has_unread() const { return parser_.has_part(); }

    /// Asks the judge.
    [[nodiscard]] Result<void> judge(const PageFrame& frame);

    /// Keeps the error for all later calls, and gives it back with a context.
    [[nodiscard]] Error fail(Error error);
    [[nodiscard]] const std::optional<Error>& failed() const { return failed_; }

private:
    [[nodiscard]] Result<void> take_hello(const PageFrame& frame, const std::optional<JoinFrame>& asked);
    [[nodiscard]] Result<void> take_blobs(FdView fd, Deadline deadline);

    FrameParser parser_;
    bool is_stream_;
    std::string from_;
    ReceiveOptions options_;
    Greeting greeting_;
    std::optional<Error> failed_;
};

/// The part of the image that a frame of pages or zeros has; nothing for other frames.
[[nodiscard]] std::optional<ImagePart> part_of(const PageFrame& frame);
/// Gives it to the sink.
[[nodiscard]] Result<void> give(const PageFrame& frame, PageSink& sink);

}  // namespace guestmem
