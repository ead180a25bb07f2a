// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stddef.h>
#include <stdint.h>

/// A host program in a share, for C: guestmem/share/session.hpp and guestmem/share/host_shm.hpp say what each call
/// means. C11 alone; a C++ compiler takes it, too. The library is libguestmem-share.so.
///
/// Concepts: handles are opaque. A session is a place in a share; a mapping is its memory and lives on when the session
/// is gone; a gm_host_shm has QNX's host operations. Option structs begin with their size: initialize them with
/// GM_SHARE_OPTIONS_INIT, and a program goes on to work with a later library.
/// Contract: a call returns GM_SHARE_OK (0), or one of the other numbers below; gm_host_shm_* return 0 or an errno.
/// gm_share_last_error() says in a sentence what the last failed call of this thread met. What is not said to fail
/// cannot. A null pointer or a wrong argument is GM_SHARE_INVALID_ARGUMENT. Nothing is thrown, no thread is made, no
/// signal handler is installed. Out parameters are written on success only; all but the first may be null.
/// Lifetime: gm_share_close(), gm_share_unmap() and gm_host_shm_destroy() take null. Descriptors belong to the handle.
/// Threads: one at a time for each handle; different handles any.
/// Limits: numbers and struct fields are added at the end, nothing is taken away while the first half of the version
/// stays.
/// Example: examples/share_client.c, examples/share_client.py.

#ifdef __cplusplus
extern "C" {
#endif

#define GM_SHARE_ABI_MAJOR 1
#define GM_SHARE_ABI_MINOR 0

/// Of the library: major << 16 | minor. A program works with its own major and at least its minor.
uint32_t gm_share_abi_version(void);

enum {
    GM_SHARE_OK = 0,
    GM_SHARE_INVALID_ARGUMENT = 1,   ///< say it differently
    GM_SHARE_NOT_FOUND = 2,          ///< name something that exists
    GM_SHARE_ALREADY_EXISTS = 3,     ///< choose another name or place
    GM_SHARE_BUSY = 4,               ///< wait until its holder is gone
    GM_SHARE_PERMISSION_DENIED = 5,  ///< ask somebody who may
    GM_SHARE_OUT_OF_RANGE = 6,       ///< stay inside the limits that the message names
    GM_SHARE_EXHAUSTED = 7,          ///< give the system more of it
    GM_SHARE_UNAVAILABLE = 8,        ///< start the other side, or try again
    GM_SHARE_TIMED_OUT = 9,          ///< wait longer
    GM_SHARE_CORRUPT = 10,           ///< look for a broken other side
    GM_SHARE_UNSUPPORTED = 11,       ///< use another version
    GM_SHARE_IO = 12                 ///< read the message
};

/// Never null; empty when no call of this thread has failed. Valid until the next call of this thread.
const char* gm_share_last_error(void);
/// The kernel's number for it, 0 when it was not asked.
int gm_share_last_errno(void);

typedef struct gm_share_session gm_share_session;
typedef struct gm_share_mapping gm_share_mapping;
typedef struct gm_host_shm gm_host_shm;

enum {
    GM_SHARE_CREATE = 1u << 0,            ///< make the share when there is none of this name
    GM_SHARE_READ_ONLY = 1u << 1,         ///< map it for reading only
    GM_SHARE_ACCEPT_UNSEALED = 1u << 2,   ///< memory that its other writers can cut short
    GM_SHARE_NO_REATTACH = 1u << 3,       ///< only gm_share_reattach() attaches again
    GM_SHARE_RING_NEVER_WAITS = 1u << 4,  ///< whatever hostile peers did to their doorbells
    GM_SHARE_WANT_SLOT = 1u << 5          ///< `slot` is wanted
};

typedef struct gm_share_options {
    size_t struct_size;
    const char* control;  ///< path of the control socket; null: the service's default
    const char* share;
    uint64_t size_bytes;  ///< of a share that has to be made, as the next two
    uint32_t vectors;     ///< 0: what the service takes
    uint32_t slots;       ///< the same
    uint32_t slot;        ///< with GM_SHARE_WANT_SLOT
    uint32_t flags;
    uint32_t timeout_ms;  ///< of an attach in all; 0: ten seconds
    uint32_t reserved;    ///< 0
} gm_share_options;

#define GM_SHARE_OPTIONS_INIT {sizeof(gm_share_options), NULL, NULL, 0, 0, 0, 0, 0, 0, 0}

typedef struct gm_share_facts {
    size_t struct_size;
    uint64_t size_bytes;
    uint64_t extent_bytes;
    uint64_t generation;         ///< counts attaches
    uint64_t memory_generation;  ///< counts the memories that they led to
    uint64_t presence_changes;   ///< counts changes of who is there
    uint32_t slot;
    uint32_t vectors;
    uint32_t slots;
    uint8_t was_created;
    uint8_t may_notify;
    uint8_t is_read_only;
    uint8_t is_sealed;
    uint8_t is_lost;  ///< the service ended, or cut this program off
    uint8_t reserved[3];
} gm_share_facts;

#define GM_SHARE_FACTS_INIT {sizeof(gm_share_facts), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0, 0, 0}}

int gm_share_attach(const gm_share_options* options, gm_share_session** session);
void gm_share_close(gm_share_session* session);
/// `facts->struct_size` says how much of it there is room for.
int gm_share_get_facts(const gm_share_session* session, gm_share_facts* facts);
/// Attaches again at once when the session is lost.
int gm_share_reattach(gm_share_session* session);

/// The share's memory, whole. A mapping of an earlier memory_generation stays as it is.
int gm_share_map(const gm_share_session* session, gm_share_mapping** mapping);
void gm_share_unmap(gm_share_mapping* mapping);
/// Null, and 0, for null.
void* gm_share_data(const gm_share_mapping* mapping);
uint64_t gm_share_size(const gm_share_mapping* mapping);

/// Writes at most `room` ids of the others that are there, ascending; `count` is how many there are.
int gm_share_peers(const gm_share_session* session, uint32_t* ids, size_t room, size_t* count);
/// 1 or 0; 0 for null.
int gm_share_is_present(const gm_share_session* session, uint32_t peer);
int gm_share_ring(gm_share_session* session, uint32_t peer, uint32_t vector);

enum {
    GM_SHARE_KICKED = 1u << 0,
    GM_SHARE_PRESENCE = 1u << 1,    ///< who is there changed
    GM_SHARE_REATTACHED = 1u << 2,  ///< look at the generations
    GM_SHARE_LOST = 1u << 3         ///< the service is not there; told once
};

typedef struct gm_share_kick {
    uint32_t vector;
    uint32_t reserved;
    uint64_t count;
} gm_share_kick;

/// Waits for a kick on one of `count` vectors (none: on any of all), at most `timeout_ms` (-1: for ever). Each of
/// `kicks`, which has room for `kicks_room`, is a vector that was rung; `kicks_count` is how many were. Vectors
/// beyond that room are left for the next call. `events` is 0 when the time passed first. With GM_SHARE_PRESENCE in
/// `wanted`, a change of who is there ends the wait, too.
int gm_share_wait(gm_share_session* session, const uint32_t* vectors, size_t count, uint32_t wanted,
                  int timeout_ms, uint32_t* events, gm_share_kick* kicks, size_t kicks_room,
                  size_t* kicks_count);
/// What there is to know, without waiting.
int gm_share_refresh(gm_share_session* session, uint32_t* events);
/// GM_SHARE_TIMED_OUT when the peer is not there in time. With `has_word` also until the 32-bit word at `word_at` of the
/// share is not 0.
int gm_share_wait_ready(gm_share_session* session, uint32_t peer, int has_word, uint64_t word_at,
                        int timeout_ms);

typedef struct gm_share_notice {
    uint32_t id;
    uint8_t has_come;  ///< 0: has gone
    uint8_t reserved[3];
} gm_share_notice;

/// Classic ids: who came and went since the last call. What does not fit into `room` is left for the next call;
/// `has_lost` is 1 when older ones were dropped.
int gm_share_take_notices(gm_share_session* session, gm_share_notice* notices, size_t room, size_t* count,
                          int* has_lost);

/// Readable while the vector has kicks, for poll and epoll only; -1 when there is none. Valid for this generation.
int gm_share_vector_fd(const gm_share_session* session, uint32_t vector);
/// Readable when gm_share_refresh() has something to say; valid until the session is closed.
int gm_share_changes_fd(const gm_share_session* session);
/// Readable for any of these.
int gm_share_any_fd(const gm_share_session* session);

// QNX's host operations. They return 0 or an errno: EINVAL (a wrong name or argument), EACCES (no permission), ENOMEM
// (no memory, no descriptors), EBUSY (all slots are held), ENOENT (no such share), EEXIST (attached already), ENOTCONN
// (not attached), ENOTSUP (more than 16 slots), ERANGE (size), ETIMEDOUT, ECONNREFUSED (no service), EIO.

#define GM_HOST_SHM_PAGE_BYTES 4096u
#define GM_HOST_SHM_POKE_ALL 0xffffu
#define GM_HOST_SHM_POKE_ALL_BUT_ME 0xffffffffu

/// `private_bytes` of the caller's own come with it, zeros.
int gm_host_shm_create(size_t private_bytes, gm_host_shm** shm);
/// Detaches, and frees the handle.
void gm_host_shm_destroy(gm_host_shm* shm);
/// Makes the share, of `size_pages` pages, or attaches to the one of this name; `control` may be null.
int gm_host_shm_attach(gm_host_shm* shm, const char* control, const char* name, uint32_t size_pages);
void gm_host_shm_detach(gm_host_shm* shm);
int gm_host_shm_poke(gm_host_shm* shm, uint32_t bits);
/// Low 16 bits: who poked since the last call. High 16 bits: who is active.
int gm_host_shm_status(gm_host_shm* shm, uint32_t* status);
/// The same, waiting for a change; ETIMEDOUT when none comes.
int gm_host_shm_wait_status(gm_host_shm* shm, int timeout_ms, uint32_t* status);
/// These are 0, null or -1 while not attached.
uint32_t gm_host_shm_size(const gm_host_shm* shm);
void* gm_host_shm_data(const gm_host_shm* shm);
const char* gm_host_shm_name(const gm_host_shm* shm);
int gm_host_shm_idx(const gm_host_shm* shm);
/// Readable when the status may have changed.
int gm_host_shm_fd(const gm_host_shm* shm);
void* gm_host_shm_client(gm_host_shm* shm);
/// 1 when the service came back with another memory: gm_host_shm_data() shows the old one until gm_host_shm_renew().
int gm_host_shm_has_other_memory(const gm_host_shm* shm);
int gm_host_shm_renew(gm_host_shm* shm);

#ifdef __cplusplus
}
#endif
