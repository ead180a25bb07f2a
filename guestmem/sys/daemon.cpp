// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/daemon.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstddef>
#include <span>

namespace guestmem {

Result<BackgroundStart> BackgroundStart::detach() {
    // A pair of sockets, not a pipe: a pipe whose reader is gone (the user's ^C) would end the child by SIGPIPE.
    auto [from_child, to_parent] = GM_TRY(UnixStream::pair());
    const pid_t child = ::fork();
    if (child < 0) return Error::from_errno(errno, "fork");
    if (child == 0) {
        if (::setsid() < 0) return Error::from_errno(errno, "leave the session of the terminal");
        return BackgroundStart{std::move(to_parent)};
    }
    to_parent = UnixStream{};
    std::byte byte{};
    const auto received = from_child.receive(std::span{&byte, 1});
    // The parent's buffers belong to the child, which writes them; nothing is flushed twice.
    ::_exit(received && *received && (*received)->count_bytes == 1 ? 0 : 1);
}

Result<void> BackgroundStart::announce_ready() {
    const Fd null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
    if (!null.is_open()) return Error::from_errno(errno, "open /dev/null");
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::dup2(null.view().number(), stream) < 0) return Error::from_errno(errno, "leave the terminal");
    constexpr std::byte byte{1};
    GM_TRY_CONTEXT(parent_.send(std::span{&byte, 1}), "tell the parent");
    parent_ = UnixStream{};
    return {};
}

namespace {

/// The process that a pid file names; 0 when there is none to read.
pid_t pid_in(const std::string& path) {
    const auto text = read_text_file(path, 64);
    pid_t pid = 0;
    if (text) std::from_chars(text->data(), text->data() + text->size(), pid);
    return pid;
}

}  // namespace

Result<PidFile> PidFile::create(const std::string& path) {
    const pid_t other = pid_in(path);
    if (other > 0 && other != ::getpid() && (::kill(other, 0) == 0 || errno == EPERM))
        return Error{Errc::already_exists, EEXIST,
                     fmt::format("pid file {}: process {} is alive; stop it, or name another file with -p",
                                 path, other)};
    GM_TRY_CONTEXT(write_text_file(path, fmt::format("{}\n", ::getpid())), "pid file");
    PidFile file{path};
    struct stat status{};
    if (::lstat(path.c_str(), &status) == 0) file.inode_ = status.st_ino;
    return file;
}

PidFile::~PidFile() {
    // Only our own: another instance may have put its file there since.
    struct stat status{};
    if (!path_.empty() && ::lstat(path_.c_str(), &status) == 0 && status.st_ino == inode_)
        ::unlink(path_.c_str());
}

}  // namespace guestmem
