// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/mem/template/image.hpp"
#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/sys/fd.hpp"

/// Guest memory frozen at a moment, from which forks are made.
///
/// Concepts: a template is a folder with a manifest, an image, sums and a state (docs/protocols/template.md). A fork
/// maps the image privately: it reads the image's pages and keeps its own writes.
/// Contract: open() takes a folder of this user or of root that nobody else can write, whose manifest checks out.
/// fork() takes an image that was not written since the manifest was. A template that is open for forks cannot be
/// removed: a lease in its folder says so, until the last fork is gone or its process is dead.
/// Threads: any; a Template is immutable.
/// Lifetime: forks keep what they need of the template.
/// Cost: a fork is a mapping for each region, whatever their size; pages are not touched.
/// Example:
///     const auto base = GM_TRY(Template::open("/var/lib/guestmem/templates/base"));
///     const Fork fork = GM_TRY(base->fork());
///     for (const auto& region : fork.regions) layout.add(region);
/// Known holes: a private mapping is no snapshot: who can write the image (its owner, root) changes what forks read of
/// pages that they have not written. open() and every fork() look at its size and time of change.

namespace guestmem {

struct Fork {
    std::string generation;  ///< of this fork alone: 32 hexadecimal digits, for vmgenid and the like
    std::vector<std::shared_ptr<const Region>> regions;
};

struct TemplateCheck {
    ImageCheck image;
    bool sums_fit = false;  ///< to the manifest
    bool state_fits = false;

    [[nodiscard]] bool is_good() const { return image.count_bad == 0 && sums_fit && state_fits; }
};

class Template {
public:
    [[nodiscard]] static Result<std::shared_ptr<const Template>> open(const std::string& folder);

    [[nodiscard]] const std::string& folder() const { return folder_; }
    [[nodiscard]] const Manifest& manifest() const { return manifest_; }
    [[nodiscard]] FdView image() const { return image_; }

    /// Memory of a new VM: private mappings of the image.
    [[nodiscard]] Result<Fork> fork() const;

    /// Reads all of it: every page against its sum, the sums and the state against the manifest.
    [[nodiscard]] Result<TemplateCheck> verify(const ImageProgress& progress = {}) const;
    /// What the VMM added; a sum that does not fit is an error.
    [[nodiscard]] Result<std::vector<std::byte>> read_state() const;

private:
    Template() = default;
    enum class ImageMustBe : std::uint8_t { whole, unchanged };
    [[nodiscard]] Result<void> check_image(ImageMustBe image) const;

    [[nodiscard]] Result<std::shared_ptr<const Lease>> lease() const;

    std::string folder_;
    Fd opened_;
    Fd manifest_file_;
    Manifest manifest_;
    Fd image_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const Lease> lease_;  ///< from the first fork on
};

/// "ram0 at guest address 0x1000" for a place in the image.
[[nodiscard]] std::string place_in_guest(const Manifest& manifest, std::uint64_t image_offset_bytes);

}  // namespace guestmem
