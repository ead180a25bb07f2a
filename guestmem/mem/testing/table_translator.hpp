// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "guestmem/mem/io_space.hpp"
#include "guestmem/mem/translated_memory.hpp"
#include "guestmem/mem/translator.hpp"

/// A Translator for tests, which is a table that the test writes; and a device behind it.
///
/// Concepts: set() puts a translation into the table by its first address; the table answers with the entry that has
/// the address, or untranslated. A TestDevice is a table, an IoSpace and one handle.
/// Contract: entries do not overlap; that is the test's business. `on_question` runs after the answer is known and
/// before it is given, so what it changes makes the answer an old one.
/// Threads: TableTranslator any; on_question is set before the first question. TestDevice one at a time.

namespace guestmem::testing {

inline IoRange io_range(std::uint64_t base, std::uint64_t size_bytes) {
    return IoRange::create(IoAddress{base}, size_bytes).value();
}
inline Translation translation(std::uint64_t base, std::uint64_t size_bytes, std::uint64_t to,
                               Permissions permissions = Permissions::read_write) {
    return Translation::create(io_range(base, size_bytes), GuestAddress{to}, permissions).value();
}

class TableTranslator final : public Translator {
public:
    std::function<void(IoAddress, Access)> on_question;

    void set(const Translation& translation) {
        const std::scoped_lock lock{mutex_};
        table_.insert_or_assign(translation.from().base(), translation);
    }
    void remove(std::uint64_t base) {
        const std::scoped_lock lock{mutex_};
        table_.erase(IoAddress{base});
    }
    [[nodiscard]] std::uint64_t count_questions() const {
        const std::scoped_lock lock{mutex_};
        return count_questions_;
    }

    [[nodiscard]] AccessResult<Translation> translate(IoAddress address, Access access) override {
        const AccessResult<Translation> answer = find(address, access);
        if (on_question) on_question(address, access);
        return answer;
    }

private:
    [[nodiscard]] AccessResult<Translation> find(IoAddress address, Access access) {
        const std::scoped_lock lock{mutex_};
        ++count_questions_;
        for (const auto& [base, entry] : table_)
            if (entry.from().contains(address)) return entry;
        return AccessError{AccessReason::untranslated, access, address.value(), 0};
    }

    mutable std::mutex mutex_;
    std::map<IoAddress, Translation> table_;
    std::uint64_t count_questions_ = 0;
};

struct TestDevice {
    explicit TestDevice(const std::shared_ptr<const MemoryMap>& map,
                        std::optional<IoRange> dirty_window = std::nullopt)
        : space(IoSpace::create({.name = "test", .translator = table, .dirty_window = dirty_window}).value()),
          memory(space.make_memory("queue 0", map).value()) {}

    std::shared_ptr<TableTranslator> table = std::make_shared<TableTranslator>();
    IoSpace space;
    std::unique_ptr<TranslatedMemory> memory;
};

}  // namespace guestmem::testing
