// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/paging/page_source.hpp"
#include "guestmem/sys/fd.hpp"

/// The compressed image of a template: guest memory in chunks of 64 KiB, each compressed alone, and an index of them.
///
/// Concepts: chunk N is the 16 pages at N * 64 KiB; the last one of an image may be shorter. A chunk of zeros is not
/// stored. The image file is the frames of the others, one behind the other in the order of their chunks, without gaps:
/// each is one zstd frame (RFC 8878) without a dictionary that announces its content size. The index file has 16
/// bytes for each chunk of the image, little endian: the offset of its frame in the image file (u64), the size of its
/// frame (u32, 1 to max_chunk_frame_bytes), 0 (u32). All zeros, in a hole of the file: the chunk is zeros.
/// chunks_sum is XXH3 (64 bits) over two u64, little endian, for each chunk that is stored, in ascending order: its
/// number, and XXH3 (64 bits) of its 16 bytes in the index.
/// Contract: the writer takes whole pages in ascending order (GM_CHECK), copies them before it looks at them, and after
/// an error is good for nothing; memory whose file was cut is one where the program has a fault guard
/// (sys/fault_guard.hpp). Nothing is durable before finish(). The reader takes any bytes in both files: what
/// breaks the format is an error (corrupt), of a chunk with its offset in the image. A frame is decompressed into the
/// room of its chunk and nowhere else, so that one which would give more costs no more. Pages get no sum here: a
/// frame that was altered and still fits gives other pages (page_sum.hpp finds them).
/// Threads: one at a time.
/// Limits: max_compressed_chunks are stored, 1 TiB of data; images are as large as a manifest says (max_image_bytes).
/// Cost: the writer holds about 1.5 MiB. The reader holds 16 bytes for each chunk that is stored and two chunks; it
/// reads an index by its data, so holes cost nothing where the file system knows them. read() keeps the last chunk that
/// it decompressed: asking page by page decompresses each chunk once. Of shared libraries, on one processor of a busy
/// machine, level 1 writes 300 MB/s and keeps 41 %, level 3 190 MB/s and 39 %; reading is 0.9 GB/s of either.
/// Example:
///     CompressedImageWriter writer{image, chunks, default_compression_level};
///     GM_TRY(writer.add(0, memory));
///     const CompressedSummary summary = GM_TRY(writer.finish(image_bytes));
///     ...
///     CompressedImageReader reader =
///         GM_TRY(CompressedImageReader::open(image, chunks, image_bytes, summary.stored_bytes, summary.chunks_sum));
///     GM_TRY(reader.read({.offset_bytes = 0, .size_bytes = 65536}, sink));

namespace guestmem {

inline constexpr std::uint64_t chunk_pages = 16;
inline constexpr std::uint64_t chunk_bytes = chunk_pages * page_size_bytes;
inline constexpr std::uint64_t chunk_entry_bytes = 16;
inline constexpr std::uint64_t max_compressed_chunks = std::uint64_t{1} << 24;
/// What zstd needs at most for 64 KiB that cannot be compressed (ZSTD_COMPRESSBOUND).
inline constexpr std::uint64_t max_chunk_frame_bytes = 65824;

/// Level 1 is the fastest of zstd's; above 19 a frame takes more memory to write for nothing at this size.
inline constexpr int min_compression_level = 1;
inline constexpr int max_compression_level = 19;
/// 5 % more bytes than level 3, in two thirds of the time.
inline constexpr int default_compression_level = 1;

struct CompressedSummary {
    std::uint64_t stored_bytes = 0;  ///< of the image file
    std::uint64_t chunks_sum = 0;

    friend bool operator==(const CompressedSummary&, const CompressedSummary&) = default;
};

class CompressedImageWriter {
public:
    /// Two empty files, which stay open for longer than the writer. A level beyond the limits is the nearest one.
    CompressedImageWriter(FdView image, FdView chunks, int level);
    CompressedImageWriter(const CompressedImageWriter&) = delete;
    CompressedImageWriter& operator=(const CompressedImageWriter&) = delete;
    ~CompressedImageWriter();

    /// Whole pages behind those that were added. What never comes is zeros.
    [[nodiscard]] Result<void> add(std::uint64_t image_offset_bytes, std::span<const std::byte> pages);
    /// Gives both files their sizes and waits until they are on the disk. Whole pages, at least what was added.
    [[nodiscard]] Result<CompressedSummary> finish(std::uint64_t image_bytes);

private:
    struct State;
    std::unique_ptr<State> state_;
};

class CompressedImageReader {
public:
    /// Reads and checks all of the index. Both files stay open for longer than the reader.
    [[nodiscard]] static Result<CompressedImageReader> open(FdView image, FdView chunks,
                                                            std::uint64_t image_bytes,
                                                            std::uint64_t stored_bytes,
                                                            std::uint64_t chunks_sum);
    CompressedImageReader(CompressedImageReader&& other) noexcept;
    CompressedImageReader& operator=(CompressedImageReader&& other) noexcept;
    CompressedImageReader(const CompressedImageReader&) = delete;
    CompressedImageReader& operator=(const CompressedImageReader&) = delete;
    ~CompressedImageReader();

    [[nodiscard]] std::uint64_t size_bytes() const;
    /// How many chunks are stored.
    [[nodiscard]] std::uint64_t count_chunks() const;

    /// Gives the pages of a part of the image, whole pages within it, in ascending order: those of a chunk that are no
    /// zeros in pieces of at most a chunk, all zeros that touch each other in one piece.
    [[nodiscard]] Result<void> read(ImagePart part, PageSink& sink);

private:
    struct State;
    explicit CompressedImageReader(std::unique_ptr<State> state);

    std::unique_ptr<State> state_;
};

}  // namespace guestmem
