// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/service_log.hpp"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include "guestmem/sys/host.hpp"

namespace guestmem::cli {
namespace {

class StderrLog final : public Log {
public:
    StderrLog(const std::string& name, bool is_verbose)
        : logger_(name, std::make_shared<spdlog::sinks::stderr_sink_mt>()),
          has_journal_(is_stderr_journal()) {
        logger_.set_level(is_verbose ? spdlog::level::debug : spdlog::level::info);
        logger_.set_pattern(has_journal_ ? "%v" : "%n: %l: %v");
        logger_.flush_on(spdlog::level::debug);
    }

    void write(LogLevel level, std::string_view text) override {
        static constexpr spdlog::level::level_enum levels[] = {spdlog::level::debug, spdlog::level::info,
                                                               spdlog::level::warn, spdlog::level::err};
        // The journal's own level words, RFC 5424 numbers in angle brackets.
        static constexpr const char* marks[] = {"<7>", "<6>", "<4>", "<3>"};
        const auto index = static_cast<std::size_t>(level);
        const std::string line = (has_journal_ ? marks[index] : "") + std::string{text};
        logger_.log(levels[index], spdlog::string_view_t{line});
    }

private:
    spdlog::logger logger_;
    bool has_journal_;
};

}  // namespace

std::unique_ptr<Log> make_service_log(const std::string& name, bool is_verbose) {
    return std::make_unique<StderrLog>(name, is_verbose);
}

}  // namespace guestmem::cli
