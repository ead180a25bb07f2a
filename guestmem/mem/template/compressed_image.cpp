// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/compressed_image.hpp"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/base/endian.hpp"
#include "guestmem/mem/template/manifest.hpp"
#include "guestmem/mem/template/page_sum.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/folder.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/sparse_file.hpp"

namespace guestmem {

namespace {

static_assert(max_chunk_frame_bytes == ZSTD_COMPRESSBOUND(chunk_bytes));

/// Frames are written in pieces of that size.
constexpr std::uint64_t frames_buffer_bytes = std::uint64_t{1} << 20;
/// And the index in pieces of that many chunks at most: 64 KiB.
constexpr std::uint64_t buffer_entries = 4096;
/// A gap of more chunks than a block has entries leaves a hole where the file system can.
constexpr std::uint64_t max_gap_entries = 4096 / chunk_entry_bytes;

constexpr std::uint64_t no_chunk = std::numeric_limits<std::uint64_t>::max();

struct Entry {
    std::uint64_t offset_bytes = 0;
    std::uint32_t size_bytes = 0;
    std::uint32_t reserved = 0;
};

using EntryBytes = std::span<std::byte, chunk_entry_bytes>;
using ConstEntryBytes = std::span<const std::byte, chunk_entry_bytes>;

void store_entry(EntryBytes bytes, const Entry& entry) {
    store_little<std::uint64_t>(bytes.subspan<0, 8>(), entry.offset_bytes);
    store_little<std::uint32_t>(bytes.subspan<8, 4>(), entry.size_bytes);
    store_little<std::uint32_t>(bytes.subspan<12, 4>(), entry.reserved);
}

Entry load_entry(ConstEntryBytes bytes) {
    return {.offset_bytes = load_little<std::uint64_t>(bytes.subspan<0, 8>()),
            .size_bytes = load_little<std::uint32_t>(bytes.subspan<8, 4>()),
            .reserved = load_little<std::uint32_t>(bytes.subspan<12, 4>())};
}

std::uint64_t count_of_chunks(std::uint64_t image_bytes) {
    return image_bytes / chunk_bytes + (image_bytes % chunk_bytes != 0 ? 1 : 0);
}

Error too_many_chunks() {
    return Error{
        Errc::out_of_range,
        fmt::format("compressed image: more than {} chunks of {} bytes are no zeros: an image of that much "
                    "data is stored without compression",
                    max_compressed_chunks, chunk_bytes)};
}

struct FreeCompressor {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

/// The index on its way into its file: a row of entries, and how far it goes.
class IndexWriter {
public:
    explicit IndexWriter(FdView file) : file_(file) {}

    Result<void> add(std::uint64_t chunk, const Entry& entry) {
        const std::uint64_t behind = first_ + bytes_.size() / chunk_entry_bytes;
        if (chunk - behind > max_gap_entries || chunk - first_ >= buffer_entries) GM_TRY(flush());
        if (bytes_.empty()) first_ = chunk;
        bytes_.resize((chunk - first_ + 1) * chunk_entry_bytes);
        const EntryBytes at = std::span{bytes_}.last<chunk_entry_bytes>();
        store_entry(at, entry);
        sum_.add(chunk, bytes_sum(at));
        return {};
    }
    Result<void> flush() {
        GM_TRY(write_at(file_, first_ * chunk_entry_bytes, bytes_));
        bytes_.clear();
        return {};
    }
    [[nodiscard]] std::uint64_t sum() const { return sum_.value(); }

private:
    FdView file_;
    std::uint64_t first_ = 0;
    std::vector<std::byte> bytes_;
    SumOfSums sum_;
};

}  // namespace

struct CompressedImageWriter::State {
    State(FdView image_file, FdView chunks_file, int level)
        : image(image_file), chunks(chunks_file), index(chunks_file), compressor(ZSTD_createCCtx()) {
        GM_CHECK(compressor != nullptr);
        const std::size_t status =
            ZSTD_CCtx_setParameter(compressor.get(), ZSTD_c_compressionLevel,
                                   std::clamp(level, min_compression_level, max_compression_level));
        GM_CHECK(ZSTD_isError(status) == 0);
    }

    /// Compresses the chunk that was gathered, if there is one and it is not zeros.
    Result<void> end_chunk(std::uint64_t size_bytes) {
        const std::uint64_t number = std::exchange(current, no_chunk);
        if (number == no_chunk) return {};
        const std::span content = std::span{gathered}.first(size_bytes);
        if (is_zero_page(content)) return {};
        if (count_chunks == max_compressed_chunks) return too_many_chunks();
        if (frames.size() + max_chunk_frame_bytes > frames_buffer_bytes) GM_TRY(flush_frames());
        const std::size_t before = frames.size();
        frames.resize(before + max_chunk_frame_bytes);
        const std::size_t size = ZSTD_compress2(compressor.get(), frames.data() + before, max_chunk_frame_bytes,
                                                content.data(), content.size());
        // It has room for the worst, and zstd has no other reason than want of memory.
        if (ZSTD_isError(size) != 0)
            return Error{Errc::exhausted,
                         fmt::format("compressed image: compress {} bytes at {} of the image: {}", size_bytes,
                                     number * chunk_bytes, ZSTD_getErrorName(size))};
        frames.resize(before + size);
        ++count_chunks;
        return index.add(
            number, {.offset_bytes = written_bytes + before, .size_bytes = static_cast<std::uint32_t>(size)});
    }

    Result<void> flush_frames() {
        GM_TRY(write_at(image, written_bytes, frames));
        written_bytes += frames.size();
        frames.clear();
        return {};
    }

    FdView image;
    FdView chunks;
    IndexWriter index;
    std::unique_ptr<ZSTD_CCtx, FreeCompressor> compressor;
    std::vector<std::byte> gathered = std::vector<std::byte>(chunk_bytes);
    std::uint64_t current = no_chunk;  ///< the chunk whose pages are gathered
    std::uint64_t added_to = 0;
    std::vector<std::byte> frames;  ///< that are not in the file yet
    std::uint64_t written_bytes = 0;
    std::uint64_t count_chunks = 0;
};

CompressedImageWriter::CompressedImageWriter(FdView image, FdView chunks, int level)
    : state_(std::make_unique<State>(image, chunks, level)) {}
CompressedImageWriter::~CompressedImageWriter() = default;

Result<void> CompressedImageWriter::add(std::uint64_t image_offset_bytes, std::span<const std::byte> pages) {
    State& state = *state_;
    GM_CHECK(image_offset_bytes >= state.added_to && image_offset_bytes % page_size_bytes == 0);
    GM_CHECK(pages.size() % page_size_bytes == 0);
    GM_CHECK(image_offset_bytes <= max_image_bytes && pages.size() <= max_image_bytes - image_offset_bytes);
    std::uint64_t at = image_offset_bytes;
    while (!pages.empty()) {
        const std::uint64_t number = at / chunk_bytes;
        if (number != state.current) {
            GM_TRY(state.end_chunk(chunk_bytes));
            state.current = number;
            std::ranges::fill(state.gathered, std::byte{0});
        }
        const std::uint64_t inside = at % chunk_bytes;
        const std::size_t size = std::min<std::uint64_t>(pages.size(), chunk_bytes - inside);
        // A guest may write meanwhile, and its file may be cut: zstd gets a copy.
        if (copy_from_guest(state.gathered.data() + inside, pages.data(), size) != size)
            return Error{
                Errc::corrupt,
                fmt::format("compressed image: the memory for {} bytes at {} of the image cannot be read: "
                            "its file was cut short, or a page is broken",
                            size, at)};
        at += size;
        pages = pages.subspan(size);
    }
    state.added_to = at;
    return {};
}

Result<CompressedSummary> CompressedImageWriter::finish(std::uint64_t image_bytes) {
    State& state = *state_;
    GM_CHECK(image_bytes >= state.added_to && image_bytes % page_size_bytes == 0);
    GM_CHECK(image_bytes <= max_image_bytes);
    if (state.current != no_chunk)
        GM_TRY(state.end_chunk(std::min(chunk_bytes, image_bytes - state.current * chunk_bytes)));
    GM_TRY(state.flush_frames());
    GM_TRY(state.index.flush());
    GM_TRY(resize_file(state.image, state.written_bytes));
    GM_TRY(resize_file(state.chunks, count_of_chunks(image_bytes) * chunk_entry_bytes));
    GM_TRY(sync_file(state.image));
    GM_TRY(sync_file(state.chunks));
    return CompressedSummary{.stored_bytes = state.written_bytes, .chunks_sum = state.index.sum()};
}

namespace {

/// A chunk that is stored. Chunk numbers end at max_image_bytes / chunk_bytes, 2^30.
struct StoredChunk {
    std::uint64_t offset_bytes = 0;
    std::uint32_t size_bytes = 0;
    std::uint32_t number = 0;
};
static_assert(sizeof(StoredChunk) == 16);
static_assert(max_image_bytes / chunk_bytes <= std::numeric_limits<std::uint32_t>::max());

/// The index as it is read: each entry against the one before it.
class IndexReader {
public:
    IndexReader(FdView file, std::uint64_t count_chunks, std::uint64_t stored_bytes)
        : file_(file), count_chunks_(count_chunks), stored_bytes_(stored_bytes) {}

    Result<void> read_all() {
        std::vector<std::byte> buffer(buffer_entries * chunk_entry_bytes);
        const std::uint64_t index_bytes = count_chunks_ * chunk_entry_bytes;
        for (std::uint64_t at = 0; at < index_bytes;) {
            const auto data = GM_TRY(next_data(file_, {at, index_bytes - at}));
            if (!data) break;
            // Where data ends is the file system's choice; an entry is read whole.
            at = data->offset_bytes / chunk_entry_bytes * chunk_entry_bytes;
            const std::uint64_t data_behind =
                data->offset_bytes + std::max<std::uint64_t>(data->size_bytes, 1);
            const std::uint64_t behind =
                (data_behind - 1) / chunk_entry_bytes * chunk_entry_bytes + chunk_entry_bytes;
            while (at < behind) {
                const std::span part =
                    std::span{buffer}.first(std::min<std::uint64_t>(buffer.size(), behind - at));
                GM_TRY(read_at(file_, at, part));
                GM_TRY(take(at / chunk_entry_bytes, part));
                at += part.size();
            }
        }
        if (next_offset_bytes_ != stored_bytes_)
            return Error{Errc::corrupt,
                         fmt::format("compressed image: the frames in the index end at {}, and the image "
                                     "file has {} bytes: the index is damaged",
                                     next_offset_bytes_, stored_bytes_)};
        return {};
    }
    [[nodiscard]] std::uint64_t sum() const { return sum_.value(); }
    std::vector<StoredChunk> take_stored() { return std::move(stored_); }

private:
    Result<void> take(std::uint64_t first_chunk, std::span<const std::byte> entries) {
        for (std::uint64_t i = 0; i < entries.size() / chunk_entry_bytes; ++i) {
            const ConstEntryBytes bytes = entries.subspan(i * chunk_entry_bytes).first<chunk_entry_bytes>();
            if (!is_zero_page(bytes)) GM_TRY(take_entry(first_chunk + i, bytes));
        }
        return {};
    }
    Result<void> take_entry(std::uint64_t chunk, ConstEntryBytes bytes) {
        const Entry entry = load_entry(bytes);
        const auto bad = [&](const std::string& why) {
            return Error{
                Errc::corrupt,
                fmt::format("compressed image: the index for the chunk at {} of the image says {} bytes at "
                            "{}: {}; the index is damaged",
                            chunk * chunk_bytes, entry.size_bytes, entry.offset_bytes, why)};
        };
        if (entry.reserved != 0) return bad(fmt::format("{} stands where 0 has to be", entry.reserved));
        if (entry.size_bytes == 0 || entry.size_bytes > max_chunk_frame_bytes)
            return bad(fmt::format("a frame has 1 to {} bytes", max_chunk_frame_bytes));
        if (entry.offset_bytes != next_offset_bytes_)
            return bad(fmt::format("the frame before it ends at {}", next_offset_bytes_));
        if (entry.size_bytes > stored_bytes_ - entry.offset_bytes)
            return bad(fmt::format("the image file has {} bytes", stored_bytes_));
        if (stored_.size() == max_compressed_chunks) return too_many_chunks();
        next_offset_bytes_ += entry.size_bytes;
        sum_.add(chunk, bytes_sum(bytes));
        stored_.push_back({.offset_bytes = entry.offset_bytes,
                           .size_bytes = entry.size_bytes,
                           .number = static_cast<std::uint32_t>(chunk)});
        return {};
    }

    FdView file_;
    std::uint64_t count_chunks_;
    std::uint64_t stored_bytes_;
    std::uint64_t next_offset_bytes_ = 0;  ///< never beyond stored_bytes_
    std::vector<StoredChunk> stored_;
    SumOfSums sum_;
};

Result<void> check_sizes(FdView image, FdView chunks, std::uint64_t image_bytes, std::uint64_t stored_bytes) {
    if (image_bytes % page_size_bytes != 0 || image_bytes > max_image_bytes)
        return Error{
            Errc::out_of_range,
            fmt::format("compressed image: {} bytes: an image is whole pages of {} bytes, at most {} bytes",
                        image_bytes, page_size_bytes, max_image_bytes)};
    const FileFacts image_facts = GM_TRY_CONTEXT(file_facts(image), "compressed image");
    if (image_facts.size_bytes != stored_bytes)
        return Error{Errc::corrupt,
                     fmt::format("compressed image: the image file has {} bytes and should have {}",
                                 image_facts.size_bytes, stored_bytes)};
    const FileFacts chunks_facts = GM_TRY_CONTEXT(file_facts(chunks), "compressed image");
    const std::uint64_t index_bytes = count_of_chunks(image_bytes) * chunk_entry_bytes;
    if (chunks_facts.size_bytes != index_bytes)
        return Error{Errc::corrupt,
                     fmt::format("compressed image: the index of {} bytes has {} bytes and should have "
                                 "{}",
                                 image_bytes, chunks_facts.size_bytes, index_bytes)};
    return {};
}

/// Pages of zeros that were met and are not given yet, so that those which touch go over in one piece.
class ZeroGatherer {
public:
    explicit ZeroGatherer(PageSink& sink) : sink_(sink) {}

    void add(std::uint64_t size_bytes) { size_bytes_ += size_bytes; }
    /// `behind` is where the zeros end.
    Result<void> give(std::uint64_t behind) {
        const std::uint64_t size_bytes = std::exchange(size_bytes_, 0);
        if (size_bytes == 0) return {};
        return sink_.take_zeros({.offset_bytes = behind - size_bytes, .size_bytes = size_bytes});
    }

private:
    PageSink& sink_;
    std::uint64_t size_bytes_ = 0;
};

}  // namespace

struct CompressedImageReader::State {
    State(FdView image_file, std::uint64_t image_size) : image(image_file), image_bytes(image_size) {
        GM_CHECK(decompressor != nullptr);
    }

    /// The content of a chunk, decompressed if it is not the last one that was.
    Result<std::span<const std::byte>> content_of(const StoredChunk& chunk) {
        const std::uint64_t offset_bytes = chunk.number * chunk_bytes;
        const std::span room = std::span{content}.first(std::min(chunk_bytes, image_bytes - offset_bytes));
        if (chunk.number == current) return std::span<const std::byte>{room};
        current = no_chunk;
        const std::span source = std::span{frame}.first(chunk.size_bytes);
        GM_TRY_CONTEXT(read_at(image, chunk.offset_bytes, source),
                       fmt::format("compressed image: the chunk at {} of the image", offset_bytes));
        GM_TRY_CONTEXT(
            decompress(source, room),
            fmt::format("compressed image: the chunk at {} of the image, {} bytes at {} of its file",
                        offset_bytes, chunk.size_bytes, chunk.offset_bytes));
        current = chunk.number;
        return std::span<const std::byte>{room};
    }

    /// One frame, of all of `source`, for all of `room`. In one call zstd allocates nothing that a frame chooses.
    Result<void> decompress(std::span<const std::byte> source, std::span<std::byte> room) const {
        // zstd may be built to read what it wrote before version 0.8, with code that this format has no use for.
        if (source.size() < sizeof(std::uint32_t) ||
            load_little<std::uint32_t>(source.first<sizeof(std::uint32_t)>()) != ZSTD_MAGICNUMBER)
            return Error{Errc::corrupt, "it is no zstd frame"};
        const unsigned long long announced = ZSTD_getFrameContentSize(source.data(), source.size());
        if (announced == ZSTD_CONTENTSIZE_ERROR || announced == ZSTD_CONTENTSIZE_UNKNOWN)
            return Error{Errc::corrupt, "its zstd frame does not say how much it holds"};
        if (announced != room.size())
            return Error{Errc::corrupt, fmt::format("its zstd frame holds {} bytes and should hold {}",
                                                    announced, room.size())};
        const std::size_t frame_size = ZSTD_findFrameCompressedSize(source.data(), source.size());
        if (ZSTD_isError(frame_size) != 0)
            return Error{Errc::corrupt,
                         fmt::format("its zstd frame is broken: {}", ZSTD_getErrorName(frame_size))};
        if (frame_size != source.size())
            return Error{Errc::corrupt, fmt::format("its zstd frame ends after {} bytes", frame_size)};
        const std::size_t size =
            ZSTD_decompressDCtx(decompressor.get(), room.data(), room.size(), source.data(), source.size());
        if (ZSTD_isError(size) != 0)
            return Error{Errc::corrupt, fmt::format("its zstd frame is broken: {}", ZSTD_getErrorName(size))};
        if (size != room.size())
            return Error{Errc::corrupt, fmt::format("its zstd frame gave {} bytes of {}", size, room.size())};
        return {};
    }

    FdView image;
    std::uint64_t image_bytes;
    std::vector<StoredChunk> stored;
    std::unique_ptr<ZSTD_DCtx, FreeDecompressor> decompressor{ZSTD_createDCtx()};
    std::vector<std::byte> frame = std::vector<std::byte>(max_chunk_frame_bytes);
    std::vector<std::byte> content = std::vector<std::byte>(chunk_bytes);
    std::uint64_t current = no_chunk;  ///< the chunk whose content it is
};

CompressedImageReader::CompressedImageReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
CompressedImageReader::CompressedImageReader(CompressedImageReader&& other) noexcept = default;
CompressedImageReader& CompressedImageReader::operator=(CompressedImageReader&& other) noexcept = default;
CompressedImageReader::~CompressedImageReader() = default;

Result<CompressedImageReader> CompressedImageReader::open(FdView image, FdView chunks,
                                                          std::uint64_t image_bytes,
                                                          std::uint64_t stored_bytes,
                                                          std::uint64_t chunks_sum) {
    GM_TRY(check_sizes(image, chunks, image_bytes, stored_bytes));
    IndexReader index{chunks, count_of_chunks(image_bytes), stored_bytes};
    GM_TRY(index.read_all());
    if (index.sum() != chunks_sum)
        return Error{Errc::corrupt,
                     fmt::format("compressed image: the index has the sum {:016x} and should have "
                                 "{:016x}: it is damaged, or of another image",
                                 index.sum(), chunks_sum)};
    auto state = std::make_unique<State>(image, image_bytes);
    state->stored = index.take_stored();
    return CompressedImageReader{std::move(state)};
}

std::uint64_t CompressedImageReader::size_bytes() const { return state_->image_bytes; }
std::uint64_t CompressedImageReader::count_chunks() const { return state_->stored.size(); }

Result<void> CompressedImageReader::read(ImagePart part, PageSink& sink) {
    State& state = *state_;
    if (part.offset_bytes % page_size_bytes != 0 || part.size_bytes % page_size_bytes != 0 ||
        part.offset_bytes > state.image_bytes || part.size_bytes > state.image_bytes - part.offset_bytes)
        return Error{
            Errc::invalid_argument,
            fmt::format("compressed image: {} bytes at {} are no whole pages within an image of {} bytes",
                        part.size_bytes, part.offset_bytes, state.image_bytes)};
    const std::uint64_t behind = part.offset_bytes + part.size_bytes;
    ZeroGatherer zeros{sink};
    auto chunk =
        std::ranges::lower_bound(state.stored, part.offset_bytes / chunk_bytes, {}, &StoredChunk::number);
    for (std::uint64_t at = part.offset_bytes; at < behind;) {
        const std::uint64_t chunk_offset =
            chunk == state.stored.end() ? behind : std::min(behind, chunk->number * chunk_bytes);
        if (at < chunk_offset) {
            zeros.add(chunk_offset - at);
            at = chunk_offset;
            continue;
        }
        const std::span<const std::byte> content = GM_TRY(state.content_of(*chunk));
        const std::span<const std::byte> wanted =
            content.first(std::min<std::uint64_t>(content.size(), behind - chunk_offset))
                .subspan(at - chunk_offset);
        for (std::uint64_t done = 0; done < wanted.size();) {
            std::uint64_t run = done;
            const auto is_zero_at = [&](std::uint64_t offset) {
                return is_zero_page(wanted.subspan(offset, page_size_bytes));
            };
            for (; run < wanted.size() && !is_zero_at(run); run += page_size_bytes) {
            }
            if (run != done) {
                GM_TRY(zeros.give(at + done));
                GM_TRY(sink.take_pages(at + done, wanted.subspan(done, run - done)));
            }
            for (done = run; done < wanted.size() && is_zero_at(done); done += page_size_bytes)
                zeros.add(page_size_bytes);
        }
        at += wanted.size();
        ++chunk;
    }
    return zeros.give(behind);
}

}  // namespace guestmem
