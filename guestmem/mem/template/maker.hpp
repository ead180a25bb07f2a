// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/template/image.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_lock.hpp"

/// Makes a template: it exists whole or not at all.
///
/// Concepts: all of it is written into a folder beside, which gets the template's name when everything is on the disk.
/// Contract: what is not committed is removed, by the destructor or, when the process was killed, by the next maker in
/// the same store. commit() waits for the disk: after it the template survives a power cut. A name that exists is an
/// error (already_exists) and left alone.
/// Threads: one at a time.
/// Example:
///     TemplateMaker maker = GM_TRY(TemplateMaker::begin("/var/lib/guestmem/templates/base"));
///     GM_TRY(maker.add_map(*map));
///     GM_TRY(maker.set_state(device_state));
///     GM_TRY(std::move(maker).commit());

namespace guestmem {

class TemplateMaker {
public:
    [[nodiscard]] static Result<TemplateMaker> begin(const std::string& folder);
    TemplateMaker(TemplateMaker&& other) noexcept;
    TemplateMaker& operator=(TemplateMaker&&) = delete;
    ~TemplateMaker();

    /// The RAM and ROM of a map, in its order.
    [[nodiscard]] Result<void> add_map(const MemoryMap& map);
    /// A region whose bytes are those of a file.
    [[nodiscard]] Result<void> add_file(const ImageRegion& region, FdView file,
                                        std::uint64_t file_offset_bytes);
    [[nodiscard]] Result<void> set_state(std::span<const std::byte> state);
    void set_provenance(std::string key, std::string value);

    [[nodiscard]] Result<Manifest> commit() &&;

private:
    TemplateMaker() = default;
    [[nodiscard]] Result<void> make_work(const std::string& store);
    [[nodiscard]] ImageRegion& place(ImageRegion region);

    std::string folder_;
    std::string work_;  ///< where it is being made; empty: nothing to remove
    std::optional<FileLock> work_lock_;
    Fd image_;
    Fd sums_;
    std::unique_ptr<ImageWriter> writer_;
    Manifest manifest_;
};

}  // namespace guestmem
