// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/own_service.hpp"

#include <algorithm>
#include <future>
#include <utility>

namespace guestmem::vmm {

Result<std::unique_ptr<OwnService>> OwnService::create(const std::string& control, Log& log,
                                                       std::uint64_t max_bytes,
                                                       std::function<Result<void>()> begin) {
    EventLoop loop = GM_TRY(EventLoop::create());
    EventFd ending = GM_TRY(EventFd::create());
    std::unique_ptr<OwnService> own{new OwnService{control, std::move(loop), std::move(ending)}};
    own->ending_source_ = GM_TRY(own->loop_.add_io(own->ending_.view(), IoEvents::readable,
                                                   [&loop = own->loop_](IoEvents) { loop.stop(); }));
    share::ServiceConfig config;
    config.control.socket.path = control;
    config.control.socket.mode = 0600;
    config.totals.bytes = std::min(max_bytes, config.totals.bytes);
    auto service = share::Service::create(own->loop_, log, std::move(config));
    if (!service) return service.error();
    own->service_ = std::make_unique<share::Service>(*std::move(service));
    const auto begun = std::make_shared<std::promise<Result<void>>>();
    own->thread_ = std::thread{[one = own.get(), &log, begun, first = std::move(begin)] {
        begun->set_value(first ? first() : Result<void>{});
        const auto ran = one->loop_.run();
        if (!ran) log.write(LogLevel::error, ran.error().message());
    }};
    GM_TRY(begun->get_future().get());
    return own;
}

OwnService::~OwnService() {
    static_cast<void>(ending_.ring());
    if (thread_.joinable()) thread_.join();
    service_.reset();
}

}  // namespace guestmem::vmm
