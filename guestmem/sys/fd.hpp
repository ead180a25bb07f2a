// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "guestmem/base/result.hpp"

/// Owners of file descriptors.
///
/// Concepts: an Fd owns a descriptor and closes it; an FdView names one that somebody else owns for longer.
/// Contract: a default Fd owns nothing. close(2) is never retried: on Linux the descriptor is gone even when
/// it reports EINTR, and a second close could hit another thread's new descriptor.
/// Threads: one at a time.
/// Limits: descriptors are opened close-on-exec, always.

namespace guestmem {

/// A descriptor that outlives the view.
class FdView {
public:
    constexpr FdView() = default;
    explicit constexpr FdView(int number) : number_(number) {}
    [[nodiscard]] constexpr bool is_open() const { return number_ >= 0; }
    /// For the system call itself, inside this room.
    [[nodiscard]] constexpr int number() const { return number_; }

private:
    int number_ = -1;
};

class Fd {
public:
    Fd() = default;
    /// Takes ownership of a descriptor that nobody else closes.
    explicit Fd(int number) : number_(number) {}
    Fd(Fd&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        if (this != &other) {
            reset();
            number_ = std::exchange(other.number_, -1);
        }
        return *this;
    }
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd() { reset(); }

    [[nodiscard]] bool is_open() const { return number_ >= 0; }
    [[nodiscard]] FdView view() const { return FdView{number_}; }
    // NOLINTNEXTLINE(google-explicit-constructor): an owner is a view wherever one is asked for
    operator FdView() const { return view(); }
    /// Closes it; the Fd owns nothing after.
    void reset() noexcept;

    /// A second descriptor of the same open file.
    [[nodiscard]] Result<Fd> duplicate() const;

private:
    int number_ = -1;
};

enum class OpenMode : std::uint8_t { read, read_write, create_exclusive };

/// Opens a file; `create_exclusive` makes it, mode 0600, and fails when it exists.
[[nodiscard]] Result<Fd> open_file(const std::string& path, OpenMode mode);

/// The whole text of a file of at most `limit_bytes`; a larger one is an error that says the limit.
[[nodiscard]] Result<std::string> read_text_file(const std::string& path, std::size_t limit_bytes);

/// Writes `text` to `path` whole or not at all: a new file beside it, then renamed over it.
[[nodiscard]] Result<void> write_text_file(const std::string& path, std::string_view text);

/// One read(2) from a pipe, terminal or file; 0 at its end. Blocks as the descriptor does.
[[nodiscard]] Result<std::size_t> read_some(FdView fd, std::span<std::byte> buffer);

/// Who a file is and how large: to question a descriptor that came from outside.
struct FileFacts {
    std::uint64_t size_bytes = 0;
    std::uint64_t allocated_bytes = 0;
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    bool is_regular = false;
    bool is_socket = false;
    bool is_stream = false;    ///< a pipe, or a socket of type SOCK_STREAM: bytes without borders
    bool is_direct = false;    ///< opened with O_DIRECT
    bool is_writable = false;  ///< the open mode of the descriptor, not the file's permissions
};
[[nodiscard]] Result<FileFacts> file_facts(FdView fd);

}  // namespace guestmem
