// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "guestmem/mem/backends/prealloc.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_advice.hpp"

namespace guestmem {

namespace {

/// Transparent huge pages have this size on x86-64 and arm64.
constexpr std::uint64_t thp_bytes = std::uint64_t{2} << 20;

/// An object that was opened or made, with what has to be undone when a later step fails.
class Opened {
public:
    explicit Opened(Fd fd) : fd_(std::move(fd)) {}
    Opened(Opened&& other) noexcept
        : fd_(std::move(other.fd_)),
          made_(std::exchange(other.made_, {})),
          made_file_(std::exchange(other.made_file_, Fd{})),
          grown_(std::exchange(other.grown_, Fd{})) {}
    Opened& operator=(Opened&&) = delete;
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;
    ~Opened() {
        // What cannot be undone stays; the error that led here is the one to tell.
        if (!made_.empty() && is_ours()) static_cast<void>(remove_file(made_));
        if (grown_.is_open()) static_cast<void>(resize_file(grown_, 0));
    }

    void undo_by_removing(std::string path, Fd file) {
        made_ = std::move(path);
        made_file_ = std::move(file);
    }
    void undo_by_emptying(Fd file) { grown_ = std::move(file); }
    void keep() {
        made_.clear();
        made_file_.reset();
        grown_.reset();
    }
    [[nodiscard]] const Fd& fd() const { return fd_; }
    [[nodiscard]] Fd take() { return std::move(fd_); }

private:
    /// Whether the name still leads to the file that was made: another one stays.
    [[nodiscard]] bool is_ours() const {
        const auto named = path_facts(made_);
        const auto mine = file_facts(made_file_);
        return named && mine && named->device == mine->device && named->inode == mine->inode;
    }

    Fd fd_;
    std::string made_;
    Fd made_file_;
    Fd grown_;
};

/// The file that the plan has seen: its name may lead elsewhere by now, and one that was empty may have content.
Result<Fd> open_planned_file(const BackendPlan& plan) {
    const std::string& path = plan.options.mem_path;
    Fd file = GM_TRY(open_file(path, plan.mode.file));
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), path);
    if (facts.device != plan.file.path.device || facts.inode != plan.file.path.inode)
        return Error{
            Errc::unavailable,
            fmt::format("{}: another file took this name while the backend was planned; try again", path)};
    if (plan.effect == FileEffect::grown && facts.size_bytes != 0)
        return Error{Errc::unavailable,
                     fmt::format("{}: it was empty when the backend was planned, and has {} bytes; try again",
                                 path, facts.size_bytes)};
    return file;
}

/// What /proc/PID/maps shows of a memory object: the kernel takes names of fewer than 250 bytes, an id may have more.
std::string shown_name(const BackendOptions& options) { return options.id.substr(0, 100); }

Result<Opened> open_file_backend(const BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    const std::uint64_t needed = options.offset_bytes + plan.mapped_bytes;
    switch (plan.effect) {
        case FileEffect::none: return Opened{GM_TRY(open_planned_file(plan))};
        case FileEffect::temporary: {
            Opened opened{GM_TRY(create_unlinked_file(options.mem_path, "guestmem-" + shown_name(options)))};
            GM_TRY(resize_file(opened.fd(), needed));
            return opened;
        }
        case FileEffect::created: {
            Opened opened{GM_TRY(create_file(options.mem_path, 0644))};
            auto mine = opened.fd().duplicate();
            if (!mine) {
                static_cast<void>(remove_file(options.mem_path));
                return std::move(mine).error();
            }
            opened.undo_by_removing(options.mem_path, *std::move(mine));
            GM_TRY(resize_file(opened.fd(), needed));
            return opened;
        }
        case FileEffect::grown: {
            Opened opened{GM_TRY(open_planned_file(plan))};
            opened.undo_by_emptying(GM_TRY(opened.fd().duplicate()));
            GM_TRY(resize_file(opened.fd(), needed));
            return opened;
        }
    }
    return Error{Errc::unsupported, "an unknown effect on the file"};
}

/// The table of kinds: what each opens. Private RAM opens nothing.
Result<Opened> open_backend(const BackendPlan& plan) {
    const BackendOptions& options = plan.options;
    const SealedMemoryOptions object{.name = shown_name(options),
                                     .size_bytes = plan.mapped_bytes,
                                     .huge_page_bytes = plan.is_huge ? plan.page_bytes : 0};
    switch (options.kind) {
        case BackendKind::ram: return Opened{GM_TRY(create_sparse_memory(object, Sealing::size))};
        case BackendKind::memfd:
            return Opened{
                GM_TRY(create_sparse_memory(object, options.is_sealed ? Sealing::size : Sealing::none))};
        case BackendKind::shm: {
            Opened opened{GM_TRY(create_shm(shown_name(options)))};
            GM_TRY(resize_file(opened.fd(), plan.mapped_bytes));
            return opened;
        }
        case BackendKind::file: return open_file_backend(plan);
        case BackendKind::physical: return Opened{GM_TRY(open_planned_file(plan))};
    }
    return Error{Errc::unsupported, "an unknown kind of backend"};
}

/// A device says no size: how far it reaches shows when it is mapped.
bool is_device(const BackendPlan& plan) {
    const FileKind kind = plan.file.path.kind;
    return kind == FileKind::character_device || kind == FileKind::block_device;
}

bool is_anonymous(const BackendPlan& plan) {
    return plan.options.kind == BackendKind::ram && plan.mode.sharing == MapSharing::private_copy;
}

Result<std::shared_ptr<const HostMemory>> map_backend(const BackendPlan& plan, Fd fd) {
    const BackendOptions& options = plan.options;
    const MapReserve reserve = options.is_reserved ? MapReserve::now : MapReserve::later;
    const bool suits_thp = plan.mapped_bytes >= thp_bytes && !plan.is_huge;
    const std::uint64_t align = std::max(options.align_bytes, suits_thp ? thp_bytes : plan.page_bytes);
    if (is_anonymous(plan))
        return HostMemory::create_anonymous(
            {.size_bytes = plan.mapped_bytes, .align_bytes = align, .reserve = reserve});
    return HostMemory::create_from_file(std::move(fd), {.size_bytes = plan.mapped_bytes,
                                                        .offset_bytes = options.offset_bytes,
                                                        .access = plan.mode.access,
                                                        .sharing = plan.mode.sharing,
                                                        .align_bytes = align,
                                                        .reserve = reserve,
                                                        .may_exceed_file = is_device(plan)});
}

/// What QEMU asks of the kernel, in its order: huge pages, no copies for children, merging, dumps, nodes, pages.
Result<void> prepare_bytes(const BackendPlan& plan, std::span<std::byte> bytes,
                           const Backend::Progress& progress) {
    const BackendOptions& options = plan.options;
    if (options.kind == BackendKind::physical) return {};
    // Wishes: a kernel that lacks one of these is as good.
    if (!plan.is_huge) static_cast<void>(advise(bytes, Advice::huge_pages));
    GM_TRY(advise(bytes, Advice::dont_fork));
    if (options.is_mergeable && !plan.is_huge) static_cast<void>(advise(bytes, Advice::mergeable));
    if (!options.is_dumped) GM_TRY(advise(bytes, Advice::dont_dump));
    if (options.policy != HostPolicy::standard)
        GM_TRY(bind_memory(bytes, options.policy, options.host_nodes));
    const bool is_bound = options.policy == HostPolicy::bind;
    if (options.is_prealloc)
        GM_TRY(preallocate(bytes, {.page_bytes = plan.page_bytes,
                                   .count_threads = options.prealloc_threads,
                                   .cost_bytes = plan.memory_now_bytes,
                                   .bound_nodes = is_bound ? std::span{options.host_nodes}
                                                           : std::span<const std::uint16_t>{},
                                   .progress = progress}));
    return {};
}

/// discard-data: the file's part is zeros when the last owner of the bytes goes.
class PunchAtEnd {
public:
    explicit PunchAtEnd(std::shared_ptr<const HostMemory> memory) : memory_(std::move(memory)) {}
    PunchAtEnd(const PunchAtEnd&) = delete;
    PunchAtEnd& operator=(const PunchAtEnd&) = delete;
    ~PunchAtEnd() {
        const auto file = memory_->file();
        // A child that was forked has a copy of this, and not the memory. A file system without holes keeps the data.
        if (file && own_process() == maker_)
            static_cast<void>(punch_hole(file->fd, file->offset_bytes, memory_->bytes().size()));
    }

private:
    std::shared_ptr<const HostMemory> memory_;
    std::int32_t maker_ = own_process();
};

std::shared_ptr<const HostMemory> punched_at_end(std::shared_ptr<const HostMemory> memory) {
    const HostMemory* const bytes = memory.get();
    return {std::make_shared<PunchAtEnd>(std::move(memory)), bytes};
}

}  // namespace

Error refusal_of(const BackendPlan& plan) {
    std::string text;
    for (const Problem& problem : plan.problems.all()) {
        if (problem.severity != Severity::refusal) continue;
        text += fmt::format("{}{}", text.empty() ? "" : "; ", problem.message);
        if (!problem.advice.empty()) text += fmt::format(" ({})", problem.advice);
    }
    return Error{Errc::invalid_argument, fmt::format("backend '{}': {}", plan.options.id, text)};
}

Result<std::shared_ptr<const Backend>> Backend::create(const BackendOptions& options) {
    const std::string context = fmt::format("backend '{}'", options.id);
    const MachineFacts machine = GM_TRY_CONTEXT(ask_machine(), context);
    return create(plan_backend(options, machine, GM_TRY_CONTEXT(ask_file(options), context)));
}

Result<std::shared_ptr<const Backend>> Backend::create(const BackendPlan& plan, const Progress& progress) {
    if (plan.problems.has_refusal()) return refusal_of(plan);
    const std::string context = fmt::format("backend '{}'", plan.options.id);
    Opened opened = is_anonymous(plan) ? Opened{Fd{}} : GM_TRY_CONTEXT(open_backend(plan), context);
    std::shared_ptr<Backend> backend{new Backend};
    backend->options_ = plan.options;
    backend->mode_ = plan.mode;
    backend->backing_ = backing_of(plan);
    backend->page_bytes_ = plan.page_bytes;
    backend->has_name_ = plan.options.kind == BackendKind::file && plan.effect != FileEffect::temporary;
    backend->has_size_ = !is_device(plan);
    backend->has_made_file_ = plan.effect == FileEffect::created;
    if (backend->has_name_) {
        // Where it is stays true when the working folder changes.
        std::error_code ignored;
        const auto whole = std::filesystem::absolute(plan.options.mem_path, ignored);
        backend->path_ = ignored ? plan.options.mem_path : whole.string();
    }
    backend->memory_ = GM_TRY_CONTEXT(map_backend(plan, opened.take()), context);
    GM_TRY_CONTEXT(prepare_bytes(plan, backend->memory_->bytes(), progress), context);
    opened.keep();
    if (plan.options.is_discarded && backend->backing_ == Backing::file)
        backend->memory_ = punched_at_end(std::move(backend->memory_));
    return std::shared_ptr<const Backend>{std::move(backend)};
}

Result<std::shared_ptr<const Region>> Backend::make_region(GuestAddress base) const {
    return Region::create({.name = options_.id, .base = base, .kind = mode_.kind, .memory = memory_});
}

Result<BackendHealth> Backend::health() const {
    if (has_size_) {
        auto whole = memory_->check_whole();
        if (!whole && whole.error().code() == Errc::corrupt) return BackendHealth::cut_short;
        if (!whole) return std::move(whole).error();
    }
    const auto file = memory_->file();
    if (!has_name_ || !file) return BackendHealth::good;
    const PathFacts named = GM_TRY(path_facts(path_));
    const FileFacts mapped = GM_TRY(file_facts(file->fd));
    const bool is_same = named.exists && named.device == mapped.device && named.inode == mapped.inode;
    return is_same ? BackendHealth::good : BackendHealth::replaced;
}

Result<void> Backend::discard(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const std::string context =
        fmt::format("backend '{}': discard {} bytes at {}", options_.id, size_bytes, offset_bytes);
    const DiscardRule& rule = discard_rule();
    if (rule.means == DiscardMeans::refused)
        return Error{Errc::unsupported, fmt::format("{}: {}", context, rule.sentence)};
    const std::uint64_t all_bytes = memory_->bytes().size();
    if (offset_bytes > all_bytes || size_bytes > all_bytes - offset_bytes)
        return Error{Errc::invalid_argument, fmt::format("{}: it has {} bytes", context, all_bytes)};
    if (offset_bytes % page_bytes_ != 0 || size_bytes % page_bytes_ != 0)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: only whole pages of {} bytes go back", context, page_bytes_)};
    if (size_bytes == 0) return {};
    if (rule.means != DiscardMeans::punched)
        GM_TRY_CONTEXT(discard_pages(memory_->bytes().subspan(offset_bytes, size_bytes)), context);
    const auto file = memory_->file();
    if (rule.means != DiscardMeans::dropped && file)
        GM_TRY_CONTEXT(punch_hole(file->fd, file->offset_bytes + offset_bytes, size_bytes), context);
    return {};
}

}  // namespace guestmem
