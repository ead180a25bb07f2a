// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"

/// Archives in the tar format: files and symbolic links by name, read in memory and written.
///
/// Concepts: an archive here is a tree of files and links; folders are what the names say. Written is plain ustar
/// (POSIX.1-1988), and where a name is too long for it the records of GNU tar. Read are these, and the extended
/// headers of pax for names, targets and sizes.
/// Contract: an archive is read whole or refused: a name that is absolute or has "..", two entries of one name, a name
/// below a file or a link, hard links, devices and pipes, a wrong sum, a size beyond the archive, an entry that is cut
/// off. Names may begin with "./". What a link says is not judged: whoever follows it stays inside the tree. Errors
/// show no control characters. The written bytes depend on names and contents alone: no time, no user, no host.
/// Threads: one at a time; a read archive is not changed.
/// Limits: max_tar_entries, names and targets of max_tar_name_bytes, contents as large as the archive is.
/// Cost: reading copies no content; about 100 bytes for each entry.
/// Known holes: sparse files of GNU tar are refused; a name in two entries is refused although tar(1) takes the last.
/// Example:
///     TarWriter writer;
///     GM_TRY(writer.add_file("proc/cmdline", "quiet\n"));
///     const TarArchive archive = GM_TRY(TarArchive::read(std::move(writer).finish()));

namespace guestmem::dma {

inline constexpr std::size_t max_tar_entries = 1 << 18;
inline constexpr std::size_t max_tar_name_bytes = 4095;

struct TarEntry {
    enum class Kind : std::uint8_t { file, link };
    std::string_view path;     ///< without "./"
    std::string_view content;  ///< of a link its target
    Kind kind = Kind::file;
};

class TarArchive {
public:
    [[nodiscard]] static Result<TarArchive> read(std::string bytes);

    /// Sorted by path. They live as long as the archive, also when it is moved.
    [[nodiscard]] std::span<const TarEntry> entries() const { return entries_; }
    /// Nothing when there is none of that name.
    [[nodiscard]] const TarEntry* find(std::string_view path) const;

private:
    std::unique_ptr<const std::string> bytes_;
    std::vector<std::unique_ptr<const std::string>> joined_names_;
    std::vector<TarEntry> entries_;

    friend class TarReader;
};

class TarWriter {
public:
    /// A path that a reader would refuse is an error (Errc::invalid_argument); names that are there twice are not
    /// looked for.
    [[nodiscard]] Result<void> add_file(std::string_view path, std::string_view content);
    [[nodiscard]] Result<void> add_link(std::string_view path, std::string_view target);
    [[nodiscard]] std::size_t size_bytes() const { return bytes_.size(); }
    /// The archive with its end.
    [[nodiscard]] std::string finish() &&;

private:
    void add_header(std::string_view path, std::string_view target, char type, std::uint64_t size_bytes);
    void add_long_text(char type, std::string_view text);
    void add_content(std::string_view content);

    std::string bytes_;
};

/// A name for people: control characters are '?', and it ends after 60 bytes.
[[nodiscard]] std::string printable_name(std::string_view name);

}  // namespace guestmem::dma
