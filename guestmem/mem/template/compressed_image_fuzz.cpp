// SPDX-License-Identifier: Apache-2.0
/// Fuzzes compressed_image.hpp: any bytes as both files, and any pages in any split.
///
/// The first byte says how the others are read, modulo 3. 0: the entries of the index, then the image file; 1: the
/// sizes of the frames (u16), of which an index is made that fits, then the image file; 2: pages to write. The second
/// byte is how many pages the image has. The sum of the index is always right, so that what stands behind it is
/// reached.
/// Asserts: a reader gives exactly the part that it was asked for, in order, in pieces of at most a chunk, and the same
/// again page by page; what was written comes back; what is not taken is an error with a sentence.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/mem/template/compressed_image.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace {

using guestmem::chunk_bytes;
using guestmem::chunk_entry_bytes;
using guestmem::page_size_bytes;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t max_pages = 80;

class FuzzSink : public guestmem::PageSink {
public:
    explicit FuzzSink(guestmem::ImagePart part) : part_(part) {}

    guestmem::Result<void> take_pages(std::uint64_t offset_bytes, std::span<const std::byte> pages) override {
        GM_CHECK(pages.size() <= chunk_bytes);
        take({offset_bytes, pages.size()});
        bytes.insert(bytes.end(), pages.begin(), pages.end());
        were_zeros_ = false;
        return {};
    }
    guestmem::Result<void> take_zeros(guestmem::ImagePart part) override {
        GM_CHECK(!std::exchange(were_zeros_, true));
        take(part);
        bytes.resize(bytes.size() + part.size_bytes);
        return {};
    }

    Bytes bytes;

private:
    void take(guestmem::ImagePart piece) const {
        GM_CHECK(piece.offset_bytes == part_.offset_bytes + bytes.size());
        GM_CHECK(piece.size_bytes != 0 && piece.size_bytes % page_size_bytes == 0);
        GM_CHECK(piece.size_bytes <= part_.size_bytes - bytes.size());
    }

    guestmem::ImagePart part_;
    bool were_zeros_ = false;
};

/// Made once: an input only changes their content.
struct Files {
    guestmem::Fd image = guestmem::create_shm("image").value();
    guestmem::Fd chunks = guestmem::create_shm("chunks").value();

    void empty() const { GM_CHECK(guestmem::resize_file(image, 0) && guestmem::resize_file(chunks, 0)); }
};

std::uint64_t sum_of_index(std::span<const std::byte> index) {
    guestmem::SumOfSums sum;
    for (std::size_t at = 0; at < index.size(); at += chunk_entry_bytes) {
        const std::span entry = index.subspan(at, chunk_entry_bytes);
        if (!guestmem::is_zero_page(entry)) sum.add(at / chunk_entry_bytes, guestmem::bytes_sum(entry));
    }
    return sum.value();
}

/// All pages that the reader gives; nothing where one of them is an error.
Bytes read_all(guestmem::CompressedImageReader& reader) {
    const guestmem::ImagePart all{0, reader.size_bytes()};
    FuzzSink sink{all};
    const auto whole = reader.read(all, sink);
    if (!whole) GM_CHECK(!whole.error().message().empty());
    GM_CHECK(!whole || sink.bytes.size() == all.size_bytes);
    bool is_good = true;
    for (std::uint64_t at = 0; at < all.size_bytes; at += page_size_bytes) {
        FuzzSink of_page{{at, page_size_bytes}};
        if (!reader.read({at, page_size_bytes}, of_page)) {
            GM_CHECK(of_page.bytes.empty());
            is_good = false;
            continue;
        }
        GM_CHECK(of_page.bytes.size() == page_size_bytes);
        if (at < sink.bytes.size())
            GM_CHECK(std::equal(of_page.bytes.begin(), of_page.bytes.end(),
                                sink.bytes.begin() + static_cast<std::ptrdiff_t>(at)));
    }
    GM_CHECK(is_good == whole.has_value());
    return is_good ? sink.bytes : Bytes{};
}

void read_made(const Files& files, std::span<const std::byte> index, std::span<const std::byte> frames,
               std::uint64_t image_bytes) {
    GM_CHECK(guestmem::write_at(files.chunks, 0, index) && guestmem::write_at(files.image, 0, frames));
    auto reader = guestmem::CompressedImageReader::open(files.image, files.chunks, image_bytes, frames.size(),
                                                        sum_of_index(index));
    if (reader) {
        GM_CHECK(reader->size_bytes() == image_bytes);
        static_cast<void>(read_all(*reader));
    } else {
        GM_CHECK(!reader.error().message().empty());
    }
}

void read_any_index(const Files& files, std::span<const std::byte> rest, std::uint64_t image_bytes) {
    Bytes index((image_bytes + chunk_bytes - 1) / chunk_bytes * chunk_entry_bytes);
    const std::size_t size = std::min(index.size(), rest.size());
    std::ranges::copy(rest.first(size), index.begin());
    read_made(files, index, rest.subspan(size), image_bytes);
}

void read_made_index(const Files& files, std::span<const std::byte> rest, std::uint64_t image_bytes) {
    constexpr std::size_t size_bytes = sizeof(std::uint16_t);
    const std::uint64_t count_chunks = (image_bytes + chunk_bytes - 1) / chunk_bytes;
    if (rest.size() < count_chunks * size_bytes) return;
    const std::span sizes = rest.first(count_chunks * size_bytes);
    const std::span frames = rest.subspan(sizes.size());
    Bytes index(count_chunks * chunk_entry_bytes);
    std::uint64_t offset = 0;
    for (std::size_t chunk = 0; chunk < count_chunks; ++chunk) {
        const std::uint64_t wanted =
            guestmem::load_little<std::uint16_t>(sizes.subspan(chunk * size_bytes).first<size_bytes>());
        const std::uint64_t size = std::min(wanted, frames.size() - offset);
        if (size == 0) continue;
        const std::span entry = std::span{index}.subspan(chunk * chunk_entry_bytes, chunk_entry_bytes);
        guestmem::store_little<std::uint64_t>(entry.first<8>(), offset);
        guestmem::store_little<std::uint32_t>(entry.subspan<8, 4>(), static_cast<std::uint32_t>(size));
        offset += size;
    }
    read_made(files, index, frames.first(offset), image_bytes);
}

/// Each three bytes are a call: how many pages are left out, how many come, and what they are of.
void write_and_read(const Files& files, std::span<const std::byte> rest, std::uint64_t image_bytes) {
    Bytes model(image_bytes);
    guestmem::CompressedImageWriter writer{files.image, files.chunks, 1};
    for (std::uint64_t at = 0; rest.size() >= 3; rest = rest.subspan(3)) {
        at += std::to_integer<std::uint64_t>(rest[0]) % 32 * page_size_bytes;
        if (at >= image_bytes) break;
        const std::uint64_t size =
            std::min(std::to_integer<std::uint64_t>(rest[1]) % 40 * page_size_bytes, image_bytes - at);
        const std::span pages = std::span{model}.subspan(at, size);
        auto word = std::to_integer<std::uint32_t>(rest[2]);
        for (std::byte& byte : pages) {
            byte = static_cast<std::byte>(word >> 24);
            word = word * 1664525U + (word >> 1);
        }
        GM_CHECK(writer.add(at, pages));
        at += size;
    }
    const auto summary = writer.finish(image_bytes);
    GM_CHECK(summary.has_value());
    auto reader = guestmem::CompressedImageReader::open(files.image, files.chunks, image_bytes,
                                                        summary->stored_bytes, summary->chunks_sum);
    GM_CHECK(reader.has_value());
    GM_CHECK(read_all(*reader) == model);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Files files;
    const auto bytes = std::as_bytes(std::span{data, size});
    if (bytes.size() < 2) return 0;
    files.empty();
    const std::uint64_t image_bytes = std::to_integer<std::uint64_t>(bytes[1]) % max_pages * page_size_bytes;
    constexpr std::array ways{read_any_index, read_made_index, write_and_read};
    ways.at(std::to_integer<std::size_t>(bytes[0]) % ways.size())(files, bytes.subspan(2), image_bytes);
    return 0;
}
