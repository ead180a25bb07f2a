// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "guestmem/cli/report.hpp"
#include "guestmem/cli/share_options.hpp"
#include "guestmem/cli/share_service.hpp"

namespace guestmem::cli {
namespace {

std::string copy_of(std::span<const std::byte> from) {
    std::string bytes(from.size(), '\0');
    copy_from_shared(std::as_writable_bytes(std::span{bytes}), from);
    return bytes;
}

/// Up to the first NUL, a piece at a time: a share may be larger than what is left of this host's memory.
std::string text_at(std::span<const std::byte> from) {
    constexpr std::size_t piece_bytes = 64 * 1024;
    std::string text;
    while (!from.empty()) {
        const std::string piece = copy_of(from.first(std::min(piece_bytes, from.size())));
        text.append(piece, 0, piece.find('\0'));
        if (piece.find('\0') != std::string::npos) break;
        from = from.subspan(piece.size());
    }
    return text;
}

Result<void> read(const ReadOptions& options) {
    ShareService service = GM_TRY(ShareService::connect(options.control));
    const auto [mapping, size] = GM_TRY(service.map(options.share, MapAccess::read_only));
    const std::uint64_t room = options.offset <= size ? size - options.offset : 0;
    if (options.offset > size)
        return Error{Errc::out_of_range, fmt::format("share '{}': offset {} is beyond its {} bytes",
                                                     options.share, options.offset, size)};
    if (options.length.value_or(0) > room)
        return Error{Errc::out_of_range,
                     fmt::format("share '{}': {} bytes at offset {} reach beyond its {} bytes", options.share,
                                 options.length.value_or(0), options.offset, size)};
    const std::string bytes = options.length
                                  ? copy_of(mapping.bytes().subspan(options.offset, *options.length))
                                  : text_at(mapping.bytes().subspan(options.offset, room));
    if (options.json) {
        // What to_printable() leaves is ASCII with doubled backslashes; only quotes are left to escape.
        std::string text;
        for (const char c : to_printable(bytes))
            text += c == '"' ? "\\\"" : c == '\\' ? "\\\\" : std::string{c};
        print(fmt::format("{{\"offset\":{},\"length\":{},\"text\":\"{}\"}}\n", options.offset, bytes.size(),
                          text));
    } else if (options.raw) {
        print(bytes);
    } else {
        print(to_printable(bytes) + "\n");
    }
    return {};
}

}  // namespace

int share_read(const ReadOptions& options) {
    const auto status = read(options);
    return status ? exit_ok : report(status.error());
}

}  // namespace guestmem::cli
