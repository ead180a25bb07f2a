// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/testing/test_map.hpp"

/// The table of ways to make a backend, which the conformance suite goes through, and a place to make one.
///
/// Concepts: a way is an option text with what it finds and what becomes of writes; DIR stands for a folder of its
/// own. A Scene is that folder, with the file as it is before.
/// Contract: all have way_bytes, which is large enough for a transparent huge page. A file with content has
/// counted_bytes().
/// Threads: one at a time.
/// Example:
///     Scene scene{ways[0]};
///     const auto backend = Backend::create(scene.options());

namespace guestmem::testing {

inline constexpr std::uint64_t way_bytes = std::uint64_t{4} << 20;
inline constexpr std::uint64_t huge_bytes = std::uint64_t{2} << 20;

/// What is at DIR/ram before.
enum class Before : std::uint8_t { nothing, empty, content };
enum class Writes : std::uint8_t { stay, reach_file, refused };
enum class Place : std::uint8_t { tmp, dev_shm, hugetlbfs };

struct Way {
    std::string_view name;
    std::string_view text;
    Before before = Before::nothing;
    Writes writes = Writes::stay;
    std::uint64_t offset_bytes = 0;
    bool is_huge = false;
    Place place = Place::tmp;

    friend std::ostream& operator<<(std::ostream& out, const Way& way) { return out << way.text; }
};

inline constexpr std::array ways{
    Way{.name = "RamPrivate", .text = "memory-backend-ram"},
    Way{.name = "RamShared", .text = "memory-backend-ram,share=on"},
    Way{.name = "Memfd", .text = "memory-backend-memfd"},
    Way{.name = "MemfdUnsealed", .text = "memory-backend-memfd,seal=off"},
    Way{.name = "MemfdPrivate", .text = "memory-backend-memfd,share=off"},
    Way{.name = "MemfdHuge", .text = "memory-backend-memfd,hugetlb=on,hugetlbsize=2M", .is_huge = true},
    Way{.name = "MemfdHugePrivate",
        .text = "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,share=off",
        .is_huge = true},
    Way{.name = "Shm", .text = "memory-backend-shm"},
    Way{.name = "FileShared",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on",
        .before = Before::content,
        .writes = Writes::reach_file},
    Way{.name = "FilePrivate", .text = "memory-backend-file,mem-path=DIR/ram", .before = Before::content},
    Way{.name = "FileMadeShared",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on",
        .writes = Writes::reach_file},
    Way{.name = "FileMadePrivate", .text = "memory-backend-file,mem-path=DIR/ram"},
    Way{.name = "FileGrown",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on",
        .before = Before::empty,
        .writes = Writes::reach_file},
    Way{.name = "FileGrownPrivate",
        .text = "memory-backend-file,mem-path=DIR/ram,offset=8K",
        .before = Before::empty,
        .offset_bytes = 8192},
    Way{.name = "FileInAFolder", .text = "memory-backend-file,mem-path=DIR,share=on"},
    Way{.name = "FileOnTmpfs",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on",
        .before = Before::content,
        .writes = Writes::reach_file,
        .place = Place::dev_shm},
    Way{.name = "FileMadeOnTmpfs",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on",
        .writes = Writes::reach_file,
        .place = Place::dev_shm},
    Way{.name = "HugeFileMadeShared",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on",
        .writes = Writes::reach_file,
        .is_huge = true,
        .place = Place::hugetlbfs},
    Way{.name = "HugeFileMadePrivate",
        .text = "memory-backend-file,mem-path=DIR/ram",
        .is_huge = true,
        .place = Place::hugetlbfs},
    Way{.name = "HugeFileInAFolder",
        .text = "memory-backend-file,mem-path=DIR,share=on",
        .is_huge = true,
        .place = Place::hugetlbfs},
    Way{.name = "FileWithOffset",
        .text = "memory-backend-file,mem-path=DIR/ram,share=on,offset=12K",
        .before = Before::content,
        .writes = Writes::reach_file,
        .offset_bytes = 12288},
    Way{.name = "TemplateClone",
        .text = "memory-backend-file,mem-path=DIR/ram,share=off,readonly=on,rom=off",
        .before = Before::content},
    Way{.name = "RomPrivate",
        .text = "memory-backend-file,mem-path=DIR/ram,readonly=on",
        .before = Before::content,
        .writes = Writes::refused},
    Way{.name = "RomShared",
        .text = "memory-backend-file,mem-path=DIR/ram,readonly=on,share=on",
        .before = Before::content,
        .writes = Writes::refused},
    Way{.name = "Physical",
        .text = "memory-backend-physical,mem-path=DIR/ram,offset=4K",
        .before = Before::content,
        .writes = Writes::reach_file,
        .offset_bytes = 4096},
    Way{.name = "PhysicalRom",
        .text = "memory-backend-physical,mem-path=DIR/ram,readonly=on",
        .before = Before::content,
        .writes = Writes::refused},
};

class Scene {
public:
    explicit Scene(const Way& way)
        : way_(way),
          folder_(
              (way.place == Place::dev_shm ? "/dev/shm" : std::filesystem::temp_directory_path().string()) +
              "/guestmem-XXXXXX") {
        GM_CHECK(::mkdtemp(folder_.data()) != nullptr);
        if (way.is_huge) huge_pages_ = std::make_unique<HugePages>(4);
        if (way.place == Place::hugetlbfs)
            is_mounted_ = ::mount("none", folder_.c_str(), "hugetlbfs", 0, "pagesize=2M") == 0;
        if (way.before == Before::content) {
            const auto content = counted_bytes(way.offset_bytes + way_bytes);
            std::ofstream{path(), std::ios::binary}.write(reinterpret_cast<const char*>(content.data()),
                                                          static_cast<std::streamsize>(content.size()));
        }
        reset();
    }
    Scene(const Scene&) = delete;
    Scene& operator=(const Scene&) = delete;
    ~Scene() {
        std::error_code ignored;
        if (is_mounted_) {
            std::filesystem::remove(path(), ignored);
            ::umount2(folder_.c_str(), MNT_DETACH);
        }
        std::filesystem::remove_all(folder_, ignored);
    }

    /// False where this machine has no huge pages to give, or none may be mounted.
    [[nodiscard]] bool is_possible() const {
        return (!huge_pages_ || huge_pages_->is_there()) && (way_.place != Place::hugetlbfs || is_mounted_);
    }
    [[nodiscard]] std::string path() const { return folder_ + "/ram"; }

    [[nodiscard]] BackendOptions options() const {
        std::string text{way_.text};
        if (const std::size_t at = text.find("DIR"); at != std::string::npos) text.replace(at, 3, folder_);
        return parse_backend(text + ",id=it,size=4M").value();
    }

    /// What the memory begins with.
    [[nodiscard]] std::vector<std::byte> first_bytes() const {
        if (way_.before != Before::content) return std::vector<std::byte>(way_bytes);
        return counted_bytes(way_bytes, way_.offset_bytes);
    }
    [[nodiscard]] std::vector<std::byte> file_bytes() const {
        std::ifstream file{path(), std::ios::binary};
        const std::string text{std::istreambuf_iterator<char>{file}, {}};
        const auto bytes = std::as_bytes(std::span{text});
        return {bytes.begin(), bytes.end()};
    }

    /// Back to how it was, when a backend was made here. A file with content keeps what was written.
    void reset() const {
        if (way_.before == Before::nothing) std::filesystem::remove(path());
        if (way_.before == Before::empty) std::ofstream{path(), std::ios::trunc}.flush();
    }
    /// Whether no file was made, and a file that was there has its size.
    [[nodiscard]] bool is_as_before() const {
        const auto names = std::filesystem::directory_iterator{folder_};
        const auto count = std::distance(begin(names), end(names));
        if (way_.before == Before::nothing) return count == 0;
        const std::uint64_t size = std::filesystem::file_size(path());
        return count == 1 && size == (way_.before == Before::empty ? 0 : way_.offset_bytes + way_bytes);
    }

    /// Shared memory objects that have a name, of this process.
    [[nodiscard]] static std::vector<std::filesystem::path> shm_names() {
        const std::string prefix = "it-" + std::to_string(::getpid()) + "-";
        std::vector<std::filesystem::path> names;
        for (const auto& entry : std::filesystem::directory_iterator{"/dev/shm"})
            if (entry.path().filename().string().starts_with(prefix)) names.push_back(entry.path());
        return names;
    }

private:
    Way way_;
    std::string folder_;
    std::unique_ptr<HugePages> huge_pages_;
    bool is_mounted_ = false;
};

}  // namespace guestmem::testing
