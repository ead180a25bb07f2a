// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/paging/page_source.hpp"

/// The pages of a template, one part after the other: raw or compressed, alone or a chain of differences.
///
/// Contract: as PageSource. Every page is compared with its sum before it is given; one that does not fit is an error
/// that names the guest address. Parts are given in ascending order.
/// Threads: one at a time; several sources of one template, any.
/// Lifetime: keeps the template, and a lease of all its layers.
/// Cost: a look for data, a read of the pages and one of their sums for each piece.

namespace guestmem {

class Lease;
class Template;

class TemplateSource final : public PageSource {
public:
    /// An image that was written since is an error, as it is of a fork.
    [[nodiscard]] static Result<std::unique_ptr<TemplateSource>> open(std::shared_ptr<const Template> base);
    ~TemplateSource() override;

    [[nodiscard]] std::uint64_t size_bytes() const override;
    [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override;

private:
    struct Layer;
    TemplateSource();

    std::shared_ptr<const Template> base_;
    std::vector<std::shared_ptr<const Lease>> leases_;
    std::vector<const Template*> templates_;
    std::vector<Layer> layers_;
};

}  // namespace guestmem
