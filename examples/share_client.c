// SPDX-License-Identifier: Apache-2.0
/// A host program in C, beside the virtual machines: takes a slot of a share, writes a text into its part of the memory,
/// waits until a peer is there, rings it, waits until it is rung, and prints the peer's text.
///
///     example_share_client /run/guestmem/share.control mailbox 0 1
///
/// The third word is the own slot, the fourth the peer's. When the share does not exist it is made.
#include <guestmem/share.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { text_bytes = 256, share_bytes = 65536, patience_ms = 30000 };

static int complain(const char* what) {
    fprintf(stderr, "%s: %s\n", what, gm_share_last_error());
    return 1;
}

static char* text_of(const gm_share_mapping* memory, uint32_t slot) {
    return (char*)gm_share_data(memory) + (size_t)slot * text_bytes;
}

static int ring_one_another(gm_share_session* session, const gm_share_mapping* memory, uint32_t slot,
                            uint32_t peer) {
    snprintf(text_of(memory, slot), text_bytes, "greetings from C on slot %u", (unsigned)slot);
    if (gm_share_wait_ready(session, peer, 0, 0, patience_ms) != GM_SHARE_OK)
        return complain("wait for the peer");
    if (gm_share_ring(session, peer, 0) != GM_SHARE_OK) return complain("ring");

    uint32_t events = 0;
    while (!(events & GM_SHARE_KICKED)) {
        if (gm_share_wait(session, NULL, 0, 0, patience_ms, &events, NULL, 0, NULL) != GM_SHARE_OK)
            return complain("wait");
        if (events == 0) {
            fprintf(stderr, "nobody rang\n");
            return 1;
        }
    }
    char heard[text_bytes];
    memcpy(heard, text_of(memory, peer), sizeof heard);
    heard[sizeof heard - 1] = '\0';
    printf("slot %u: %s\n", (unsigned)peer, heard);
    return 0;
}

static int run(const gm_share_options* options, uint32_t peer) {
    gm_share_session* session = NULL;
    if (gm_share_attach(options, &session) != GM_SHARE_OK) return complain("attach");

    int status = 1;
    gm_share_facts facts = GM_SHARE_FACTS_INIT;
    gm_share_mapping* memory = NULL;
    if (gm_share_get_facts(session, &facts) != GM_SHARE_OK || gm_share_map(session, &memory) != GM_SHARE_OK) {
        complain("map");
    } else if (facts.slots <= peer || gm_share_size(memory) < (uint64_t)facts.slots * text_bytes) {
        fprintf(stderr, "the share has %u slots and %llu bytes\n", (unsigned)facts.slots,
                (unsigned long long)gm_share_size(memory));
    } else {
        status = ring_one_another(session, memory, facts.slot, peer);
    }
    gm_share_unmap(memory);
    gm_share_close(session);
    return status;
}

int main(int count, char** words) {
    if (count != 5) {
        fprintf(stderr, "usage: %s CONTROL SHARE SLOT PEER\n", words[0]);
        return 2;
    }
    if (gm_share_abi_version() >> 16 != GM_SHARE_ABI_MAJOR) {
        fprintf(stderr, "another libguestmem-share than this program was built for\n");
        return 1;
    }
    gm_share_options options = GM_SHARE_OPTIONS_INIT;
    options.control = words[1];
    options.share = words[2];
    options.slot = (uint32_t)strtoul(words[3], NULL, 10);
    options.size_bytes = share_bytes;
    options.flags = GM_SHARE_CREATE | GM_SHARE_WANT_SLOT;
    return run(&options, (uint32_t)strtoul(words[4], NULL, 10));
}
