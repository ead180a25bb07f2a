// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/io_space.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/io_space_state.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem {

namespace {

/// What an IOMMU that is switched off says: two halves, since the whole space is no range.
Translation identity_around(IoAddress address) {
    constexpr std::uint64_t half = std::uint64_t{1} << 63;
    const std::uint64_t base = address.value() & half;
    return *Translation::create(*IoRange::create(IoAddress{base}, half), GuestAddress{base},
                                Permissions::read_write);
}

std::string to_text(const std::optional<IoRange>& range) {
    if (!range) return "all";
    return fmt::format("{:#x} to {:#x}", range->base().value(), range->last().value());
}

AccessReason refusal_of(AccessReason reason) {
    const bool is_known = reason == AccessReason::untranslated || reason == AccessReason::denied;
    return is_known ? reason : AccessReason::translator_failed;
}

}  // namespace

namespace detail {

IoSpaceState::IoSpaceState(IoSpaceOptions options, Iotlb cache)
    : name(std::move(options.name)),
      translator(std::move(options.translator)),
      window(options.dirty_window),
      has_membarrier(prepare_membarrier()),
      iotlb(std::move(cache)) {
    if (window) tracker = std::make_unique<DirtyTracker>(window->size_bytes());
}

FoundTranslation IoSpaceState::look_up(IoAddress address) {
    const std::uint64_t current = generation.load(std::memory_order_relaxed);
    if (translating == Translating::off) return {identity_around(address), current};
    return {iotlb.lookup(address), current};
}

FoundTranslation IoSpaceState::find(IoAddress address) {
    const std::scoped_lock lock{mutex};
    return look_up(address);
}

void IoSpaceState::Question::note(const Changed& changed) {
    if (!changed || changed->contains(address)) {
        is_stale = true;
    } else if (changed->base() > address) {
        last = std::min(last, IoAddress{changed->base().value() - 1});
    } else {
        first = std::max(first, IoAddress{changed->last().value() + 1});
    }
}

/// A question that change() knows of while it lives: from the lookup on that found nothing.
class OpenQuestion : public IoSpaceState::Question {
public:
    /// With the mutex held.
    OpenQuestion(IoSpaceState& state, IoAddress asked) : Question{.address = asked}, state_(state) {
        state_.questions_open.insert(this);
    }
    OpenQuestion(const OpenQuestion&) = delete;
    OpenQuestion& operator=(const OpenQuestion&) = delete;
    ~OpenQuestion() {
        const std::scoped_lock lock{state_.mutex};
        state_.questions_open.erase(this);
    }

private:
    IoSpaceState& state_;
};

AccessResult<FoundTranslation> IoSpaceState::find_or_ask(IoAddress address, Access access,
                                                         MapReader& reader) {
    const auto refuse = [&](AccessReason reason) { return AccessError{reason, access, address.value(), 0}; };
    std::optional<OpenQuestion> question;
    {
        const std::scoped_lock lock{mutex};
        const FoundTranslation found = look_up(address);
        if (found.translation && allows(found.translation->permissions(), access)) return found;
        question.emplace(*this, address);
    }
    // The Translator may take its time: this handle is in nobody's way meanwhile.
    reader.park();
    const AccessResult<Translation> answer = translator->translate(address, access);
    const std::scoped_lock lock{mutex};
    ++questions;
    if (question->is_stale) {
        ++stale_answers;
        return FoundTranslation{};
    }
    if (!answer) return refuse(refusal_of(answer.error().reason()));
    if (!answer->from().contains(address)) return refuse(AccessReason::translator_failed);
    const IoRange unchanged = *IoRange::from_first_last(std::max(question->first, answer->from().base()),
                                                        std::min(question->last, answer->from().last()));
    const std::optional<Translation> kept = answer->within(unchanged);
    iotlb.insert(*kept);
    if (!allows(kept->permissions(), access)) return refuse(AccessReason::denied);
    return FoundTranslation{kept, generation.load(std::memory_order_relaxed)};
}

template <typename DoChange>
Result<void> IoSpaceState::change(std::string_view what, const Changed& changed,
                                  std::chrono::milliseconds limit, DoChange&& do_change) {
    std::uint64_t next = 0;
    {
        const std::scoped_lock lock{mutex};
        next = generation.load(std::memory_order_relaxed) + 1;
        for (Question* question : questions_open) question->note(changed);
        do_change();
        generation.store(next, std::memory_order_release);
    }
    auto waited = wait(next, changed, limit);
    if (!waited)
        return std::move(waited).error().with_context(
            fmt::format("io space '{}': {} {}", name, what, to_text(changed)));
    return {};
}

Result<void> IoSpaceState::wait(std::uint64_t next, const Changed& changed, std::chrono::milliseconds limit) {
    limit = std::clamp(limit, std::chrono::milliseconds{0}, max_invalidate_limit);
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::chrono::microseconds pause{10};
    // Without membarrier the handles fence themselves: between their store to the slot and their load of the
    // generation, as here between the store of the generation and the loads of the slots.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    Result<void> settled = has_membarrier ? membarrier() : Result<void>{};
    for (;;) {
        std::vector<std::string> users;
        if (settled) {
            const std::scoped_lock lock{mutex};
            users = users_before(next, changed);
            if (users.empty()) return {};
        }
        const auto now = std::chrono::steady_clock::now();
        if (now >= deadline) {
            if (!settled) return settled;
            return Error{Errc::timed_out, fmt::format("still in use after {} ms by {}", limit.count(),
                                                      fmt::join(users, ", "))};
        }
        std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, deadline - now));
        pause = std::min<std::chrono::microseconds>(pause * 2, std::chrono::milliseconds{1});
        if (!settled) settled = membarrier();
    }
}

std::vector<std::string> IoSpaceState::users_before(std::uint64_t next, const Changed& changed) const {
    std::vector<std::string> users;
    for (const auto& [slot, handle] : slots) {
        // Acquire pairs with the release of leave(): its access is over.
        const std::uint64_t inside = slot->inside.load(std::memory_order_acquire);
        if (inside != 0 && inside < next) users.push_back(fmt::format("handle '{}'", handle));
    }
    for (const auto& [ticket, hold] : holds)
        if (hold.generation < next && (!changed || changed->overlaps(hold.range)))
            users.push_back(
                fmt::format("handle '{}' for '{}' ({})", hold.handle, hold.why, to_text(hold.range)));
    return users;
}

}  // namespace detail

IoHold::IoHold(std::shared_ptr<detail::IoSpaceState> state, std::uint64_t ticket)
    : state_(std::move(state)), ticket_(ticket) {}

IoHold::IoHold(IoHold&& other) noexcept = default;

IoHold& IoHold::operator=(IoHold&& other) noexcept {
    std::swap(state_, other.state_);
    std::swap(ticket_, other.ticket_);
    return *this;
}

IoHold::~IoHold() {
    if (!state_) return;
    const std::scoped_lock lock{state_->mutex};
    state_->holds.erase(ticket_);
}

Result<IoSpace> IoSpace::create(IoSpaceOptions options) {
    const auto context = [&] { return fmt::format("io space '{}'", options.name); };
    if (!options.translator)
        return Error{Errc::invalid_argument, fmt::format("{}: it has no translator", context())};
    if (options.dirty_window && (!options.dirty_window->base().is_aligned(page_size_bytes) ||
                                 options.dirty_window->size_bytes() % page_size_bytes != 0))
        return Error{
            Errc::invalid_argument,
            fmt::format("{}: the dirty window {:#x}, {:#x} bytes, is not made of whole pages", context(),
                        options.dirty_window->base().value(), options.dirty_window->size_bytes())};
    Iotlb iotlb = GM_TRY_CONTEXT(Iotlb::create({.capacity = options.iotlb_capacity}), context());
    return IoSpace{std::make_shared<detail::IoSpaceState>(std::move(options), std::move(iotlb))};
}

Result<std::unique_ptr<TranslatedMemory>> IoSpace::make_memory(std::string name, MapReader map) {
    const std::scoped_lock lock{state_->mutex};
    if (state_->slots.size() >= max_io_handles)
        return Error{Errc::exhausted, fmt::format("io space '{}': handle '{}': there are at most {}",
                                                  state_->name, name, max_io_handles)};
    return std::unique_ptr<TranslatedMemory>{new TranslatedMemory{state_, std::move(name), std::move(map)}};
}

Result<std::unique_ptr<TranslatedMemory>> IoSpace::make_memory(std::string name,
                                                               std::shared_ptr<const MemoryMap> map) {
    LiveMap still{std::move(map)};
    MapReader reader = GM_TRY(still.make_reader(name));
    return make_memory(std::move(name), std::move(reader));
}

Result<void> IoSpace::invalidate(const IoRange& range, std::chrono::milliseconds limit) {
    return state_->change("invalidate", range, limit, [&] { state_->iotlb.invalidate(range); });
}

Result<void> IoSpace::invalidate_all(std::chrono::milliseconds limit) {
    return state_->change("invalidate", std::nullopt, limit, [&] { state_->iotlb.invalidate_all(); });
}

Result<void> IoSpace::set_mapping(const Translation& translation, std::chrono::milliseconds limit) {
    return state_->change("set the mapping of", translation.from(), limit,
                          [&] { state_->iotlb.insert(translation); });
}

Result<void> IoSpace::set_translating(Translating translating, std::chrono::milliseconds limit) {
    return state_->change("switch the translation of", std::nullopt, limit,
                          [&] { state_->translating = translating; });
}

Translating IoSpace::translating() const {
    const std::scoped_lock lock{state_->mutex};
    return state_->translating;
}

DirtyTracker* IoSpace::dirty() const { return state_->tracker.get(); }

IoSpaceCounts IoSpace::counts() const {
    const std::scoped_lock lock{state_->mutex};
    return {.iotlb = state_->iotlb.counts(),
            .count_entries = state_->iotlb.count(),
            .questions = state_->questions,
            .stale_answers = state_->stale_answers,
            .changes = state_->generation.load(std::memory_order_relaxed) - 1};
}

}  // namespace guestmem
