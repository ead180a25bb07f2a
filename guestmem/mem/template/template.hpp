// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_runs.hpp"
#include "guestmem/mem/template/image_check.hpp"
#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/restore.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// Guest memory frozen at a moment, from which forks are made.
///
/// Concepts: a template is a folder with a manifest, an image, sums and a state (docs/protocols/template.md). A fork
/// maps the image privately: it reads the image's pages and keeps its own writes; or it gets the pages as copies, at
/// once or when they are touched (restore.hpp). A difference has the pages that are not its parent's: the templates of
/// such a chain are its layers.
/// Contract: open() takes a folder of this user or of root that nobody else can write, whose manifest checks out; root
/// takes those of all users, who can change what root's forks read.
/// fork() takes an image that was not written since the manifest was. A template that is open for forks cannot be
/// removed: a lease in its folder says so, until the Template and the last fork are gone or their process is dead.
/// load() gives a copy in memory that nobody can write, whose forks need no file.
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

/// A chain of differences is at most so long: each page may be in any of them.
inline constexpr std::size_t max_template_layers = 64;
/// What one fork of a chain maps at most, each with up to two mappings: the kernel has 65530 for all of a process.
inline constexpr std::size_t max_fork_pieces = 16384;

struct LoadOptions {
    std::uint64_t huge_page_bytes = 0;  ///< 0: ordinary pages
};

/// Of a difference: what it has itself. Its parent is a template of its own.
struct TemplateCheck {
    ImageCheck image;
    bool sums_fit = false;  ///< to the manifest
    bool state_fits = false;

    [[nodiscard]] bool is_good() const { return image.count_bad == 0 && sums_fit && state_fits; }
};

class Template : public std::enable_shared_from_this<Template> {
public:
    [[nodiscard]] static Result<std::shared_ptr<const Template>> open(const std::string& folder);

    [[nodiscard]] const std::string& folder() const { return folder_; }
    [[nodiscard]] const Manifest& manifest() const { return manifest_; }
    /// Null when it is no difference.
    [[nodiscard]] const std::shared_ptr<const Template>& parent() const { return parent_; }
    /// Whether it is what load() gave.
    [[nodiscard]] bool is_loaded() const { return is_loaded_; }
    /// As Manifest::encoding says.
    [[nodiscard]] FdView image() const { return image_; }

    /// Which pages this one has; null: it is no difference, and has all.
    [[nodiscard]] const PageRuns* own_pages() const { return manifest_.parent ? &own_pages_ : nullptr; }
    /// This one, its parent, and so on.
    [[nodiscard]] std::vector<const Template*> layers() const;

    /// Keeps it and its parents from being removed, and looks whether their images are what they were.
    using Leases = std::vector<std::shared_ptr<const Lease>>;
    [[nodiscard]] Result<Leases> hold() const;

    /// Memory of a new VM.
    [[nodiscard]] Result<Fork> fork(const ForkOptions& options = {}) const;
    /// All of it in sealed memory, with the pages of its parents; huge pages take regions that are whole ones.
    [[nodiscard]] Result<std::shared_ptr<const Template>> load(const LoadOptions& options = {}) const;

    /// The file of sums; not open for one that was loaded, whose pages were compared then.
    [[nodiscard]] Result<Fd> open_sums() const;
    /// The index of a compressed image.
    [[nodiscard]] Result<Fd> open_chunks() const;

    /// For who looks at the template (fork_bill.hpp): which process has a fork, and how long it took to run.
    [[nodiscard]] Result<void> note_fork(const ForkNote& note) const;

    /// Reads all of it: every page against its sum, the sums and the state against the manifest.
    [[nodiscard]] Result<TemplateCheck> verify(const ImageProgress& progress = {}) const;
    /// What the VMM added; a sum that does not fit is an error.
    [[nodiscard]] Result<std::vector<std::byte>> read_state() const;

private:
    Template() = default;
    enum class ImageMustBe : std::uint8_t { whole, unchanged };
    [[nodiscard]] static Result<std::shared_ptr<const Template>> open_layer(const std::string& folder,
                                                                            std::size_t depth);
    [[nodiscard]] Result<void> open_parent(std::size_t depth);
    [[nodiscard]] Result<void> check_image(ImageMustBe image) const;

    [[nodiscard]] Result<std::shared_ptr<const Lease>> lease() const;
    [[nodiscard]] Result<Fork> map_fork() const;
    [[nodiscard]] Result<void> watch_writes(Fork& fork) const;
    [[nodiscard]] Result<std::shared_ptr<const HostMemory>> map_region(const ImageRegion& region,
                                                                       Leases leases,
                                                                       std::size_t& count_pieces) const;
    [[nodiscard]] Result<void> check_memory(const LoadOptions& options) const;
    [[nodiscard]] Result<ImageSummary> fill(FdView memory) const;

    std::string folder_;
    Fd opened_;
    Fd manifest_file_;
    Manifest manifest_;
    Fd image_;
    KnownFile known_image_;
    PageRuns own_pages_;
    std::shared_ptr<const Template> parent_;
    bool is_loaded_ = false;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const Lease> lease_;   ///< from the first fork on
    mutable std::optional<WriteWatcher> watcher_;  ///< of all forks whose writes are watched
};

/// "ram0 at guest address 0x1000" for a place in the image.
[[nodiscard]] std::string place_in_guest(const Manifest& manifest, std::uint64_t image_offset_bytes);

}  // namespace guestmem
