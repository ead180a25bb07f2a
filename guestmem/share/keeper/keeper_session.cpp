// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_session.hpp"

#include <cerrno>
#include <utility>

namespace guestmem::share {

bool KeptTable::keep(const KeptKey& key, Fd fd) {
    if (const auto at = fds_.find(key); at != fds_.end()) {
        at->second = std::move(fd);
        return true;
    }
    if (fds_.size() >= capacity_) return false;
    fds_.emplace(key, std::move(fd));
    return true;
}

KeeperMessage KeeperSession::welcome() const {
    return {.verb = KeeperVerb::welcome,
            .values = {keeper_version, static_cast<std::uint32_t>(table_->size()),
                       static_cast<std::uint32_t>(table_->capacity())}};
}

KeeperReply KeeperSession::take(const KeeperMessage& message, std::vector<Fd> fds, bool has_lost_fds) {
    const std::size_t count_wanted = message.has_fds() ? message.keys.size() : 0;
    const bool is_complete = has_lost_fds ? fds.size() < count_wanted : fds.size() == count_wanted;
    if (!is_complete || is_handed_over_ == (message.verb == KeeperVerb::next)) return {.is_over = true};
    switch (message.verb) {
        case KeeperVerb::next: return hand_over();
        case KeeperVerb::keep: keep_all(message, std::move(fds), has_lost_fds); break;
        case KeeperVerb::forget:
            for (const KeptKey& key : message.keys) table_->forget(key);
            break;
        case KeeperVerb::sync: break;
        case KeeperVerb::end: {
            table_->clear();
            KeeperReply last = answer(message.number);
            last.is_end = true;
            return last;
        }
        default: return {.is_over = true};  // words of a keeper
    }
    return answer(message.number);
}

KeeperReply KeeperSession::hand_over() {
    KeeperReply reply{.message = KeeperMessage{.verb = KeeperVerb::holding}};
    const auto& all = table_->fds();
    auto at = last_handed_ ? all.upper_bound(*last_handed_) : all.begin();
    for (; at != all.end() && reply.fds.size() < max_keys_per_message; ++at) {
        reply.message->keys.push_back(at->first);
        reply.fds.push_back(at->second.view());
    }
    if (reply.fds.empty()) {
        is_handed_over_ = true;
    } else {
        last_handed_ = reply.message->keys.back();
    }
    return reply;
}

KeeperReply KeeperSession::answer(std::uint32_t number) {
    if (number == 0) return {};
    return {.message = KeeperMessage{
                .verb = KeeperVerb::done, .number = number, .status = std::exchange(first_errno_, 0)}};
}

void KeeperSession::keep_all(const KeeperMessage& message, std::vector<Fd> fds, bool has_lost_fds) {
    // The kernel installs them in order, and stops at the first for which there is no number.
    for (std::size_t i = 0; i < fds.size(); ++i)
        if (!table_->keep(message.keys[i], std::move(fds[i]))) note(ENOSPC);
    if (has_lost_fds) note(EMFILE);
}

void KeeperSession::note(int os_error) {
    if (first_errno_ == 0) first_errno_ = static_cast<std::uint32_t>(os_error);
}

}  // namespace guestmem::share
