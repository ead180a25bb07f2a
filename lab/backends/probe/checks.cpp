// SPDX-License-Identifier: Apache-2.0
#include "lab/backends/probe/checks.hpp"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/layout.hpp"

namespace lab {

using namespace guestmem;

void Checks::say(std::string_view word, std::string_view name, std::string_view detail) {
    ++count_;
    fmt::print("{} {}: {}{}{}\n", word, part_, name, detail.empty() ? "" : " -- ", detail);
    std::fflush(stdout);
}

bool Checks::expect(bool is_good, std::string_view name, std::string_view detail) {
    say(is_good ? "PASS" : "FAIL", name, is_good ? "" : detail);
    return is_good;
}

void Checks::not_run(std::string_view name, std::string_view why) { say("NOT RUN", name, why); }

void Checks::end() const {
    fmt::print("END {} {}\n", part_, count_);
    std::fflush(stdout);
}

BackendResult make_backend(const std::string& text) { return Backend::create(GM_TRY(parse_backend(text))); }

Result<BackendPlan> make_plan(const std::string& text) {
    const BackendOptions options = GM_TRY(parse_backend(text));
    const MachineFacts machine = GM_TRY(ask_machine());
    return plan_backend(options, machine, GM_TRY(ask_file(options)));
}

Result<std::shared_ptr<const MemoryMap>> map_of(const Backend& backend, std::uint64_t base) {
    Layout layout;
    layout.add(GM_TRY(backend.make_region(GuestAddress{base})));
    return std::move(layout).freeze();
}

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::uint64_t read_number(const std::string& path) {
    return std::strtoull(read_text(path).c_str(), nullptr, 10);
}

bool write_text(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    file.close();
    return file.good();
}

std::uint64_t number_in(const std::string& text, std::string_view key) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        if (!line.starts_with(key)) continue;
        const std::string rest = line.substr(key.size());
        if (rest.starts_with(' ') || rest.starts_with(':'))
            return std::strtoull(rest.c_str() + 1, nullptr, 10);
    }
    return 0;
}

std::string smaps_of(std::span<const std::byte> bytes) {
    const std::string begin = fmt::format("{:x}-", reinterpret_cast<std::uintptr_t>(bytes.data()));
    std::istringstream lines(read_text("/proc/self/smaps"));
    std::string found;
    for (std::string line; std::getline(lines, line);) {
        // A line about a mapping has its addresses first; one about its numbers begins with an upper-case letter.
        const bool is_head = line[0] < 'A' || line[0] > 'Z';
        if (is_head && !found.empty()) break;
        if (!found.empty() || line.starts_with(begin)) found += line + '\n';
    }
    return found;
}

std::string output_of(const std::string& command) {
    std::string text;
    std::FILE* pipe = ::popen(command.c_str(), "re");
    if (pipe == nullptr) return text;
    for (int letter = std::fgetc(pipe); letter != EOF; letter = std::fgetc(pipe))
        text += static_cast<char>(letter);
    ::pclose(pipe);
    return text;
}

std::string end_of_child(const std::function<void()>& work) {
    std::fflush(stdout);
    const pid_t child = ::fork();
    if (child < 0) return "no child could be made";
    if (child == 0) {
        work();
        std::fflush(stdout);
        std::_Exit(0);
    }
    int status = 0;
    if (::waitpid(child, &status, 0) != child) return "the child cannot be waited for";
    if (WIFSIGNALED(status)) return fmt::format("signal {} ended the process", WTERMSIG(status));
    return WEXITSTATUS(status) == 0 ? "" : fmt::format("exit status {}", WEXITSTATUS(status));
}

}  // namespace lab
