// SPDX-License-Identifier: Apache-2.0
// Asks for a share where no service is, and gets the sentence that says so.
#include <guestmem/share.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    gm_share_options options = GM_SHARE_OPTIONS_INIT;
    options.control = "/nonexistent/share.control";
    options.share = "mailbox";
    gm_share_session* session = NULL;
    const int status = gm_share_attach(&options, &session);
    printf("version %u: %s\n", (unsigned)(gm_share_abi_version() >> 16), gm_share_last_error());
    return status == GM_SHARE_UNAVAILABLE && strstr(gm_share_last_error(), "no service at") != NULL ? 0 : 1;
}
