// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/flatten.hpp"

#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/template_source.hpp"

namespace guestmem {

Result<Manifest> flatten_template(const std::shared_ptr<const Template>& original, const std::string& folder,
                                  const MakerOptions& options, const ImageProgress& progress) {
    const auto source = GM_TRY(TemplateSource::open(original));
    TemplateMaker maker = GM_TRY(TemplateMaker::begin(folder, options));
    GM_TRY(maker.add_source(original->manifest().regions, *source, progress));
    if (original->manifest().state_bytes != 0) {
        const std::vector<std::byte> state = GM_TRY(original->read_state());
        GM_TRY(maker.set_state(state));
    }
    for (const auto& [key, value] : original->manifest().provenance) maker.set_provenance(key, value);
    return std::move(maker).commit();
}

}  // namespace guestmem
