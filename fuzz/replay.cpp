// SPDX-License-Identifier: Apache-2.0
/// Runs a fuzzer's one function over every file of a folder, in builds without libFuzzer: ctest replays each
/// fuzzer's corpus this way, so that neither a fuzzer nor a fix rots.
///
/// Contract: replay FOLDER. Ends with 0 when every file passed, with 1 when the folder is missing or empty, or a
/// file cannot be read; a file that fails aborts, and the last line names it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> files_in(const fs::path& folder) {
    std::vector<fs::path> files;
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator{folder, error})
        if (entry.is_regular_file(error)) files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
}

bool replay(const fs::path& path) {
    std::ifstream file{path, std::ios::binary};
    const std::vector<char> bytes{std::istreambuf_iterator<char>{file}, {}};
    if (!file || file.bad()) return false;
    // Said first and flushed: a file that aborts is the last one named.
    std::printf("%s: %zu bytes\n", path.filename().c_str(), bytes.size());
    std::fflush(stdout);
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::fprintf(stderr, "usage: %s FOLDER\n", arguments[0]);
        return 2;
    }
    const std::vector<fs::path> files = files_in(arguments[1]);
    if (files.empty()) {
        std::fprintf(stderr, "%s: there is no file in this folder, or no folder\n", arguments[1]);
        return 1;
    }
    for (const fs::path& path : files) {
        if (replay(path)) continue;
        std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
        return 1;
    }
    std::printf("%zu files replayed\n", files.size());
    return 0;
}
