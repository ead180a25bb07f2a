// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/fd_message.hpp"

#include <cstring>

#include "guestmem/base/check.hpp"

namespace guestmem {

void put_fds(msghdr& header, std::span<unsigned char> control, std::span<const FdView> fds) {
    if (fds.empty()) return;
    GM_CHECK(control.size() >= CMSG_SPACE(sizeof(int) * fds.size()));
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    for (std::size_t i = 0; i < fds.size(); ++i) {
        const int number = fds[i].number();
        std::memcpy(CMSG_DATA(rights) + i * sizeof(int), &number, sizeof number);
    }
}

void take_fds(msghdr& header, std::vector<Fd>& fds) {
    for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int number = -1;
            std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof number);
            fds.emplace_back(number);
        }
    }
}

}  // namespace guestmem
