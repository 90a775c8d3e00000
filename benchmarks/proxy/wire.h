/* What the mock engines and the load generator share: errors, time, sockets, a growing buffer, header fields. */
#ifndef GHOSTCACHER_BENCH_WIRE_H
#define GHOSTCACHER_BENCH_WIRE_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HEAD_MAX 65536         /* bytes of a message's head: more is an error, not a longer wait */
#define READ_BYTES (256 << 10) /* room kept free for one read: a whole large prompt, when it is there */

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

typedef struct {
    char *data;
    size_t have, cap;
} Buffer;

/* Make room for `more` bytes after what is there. */
static inline void reserve(Buffer *b, size_t more) {
    if (b->cap - b->have >= more) return;
    size_t cap = b->cap ? b->cap : 4096;
    while (cap - b->have < more) cap *= 2;
    b->data = realloc(b->data, cap);
    if (!b->data) die("memory");
    b->cap = cap;
}

/* Forget the first `count` bytes. */
static inline void drop(Buffer *b, size_t count) {
    b->have -= count;
    if (b->have) memmove(b->data, b->data + count, b->have);
}

static inline struct sockaddr_in loopback(uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline void watch(int poll, int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(poll, operation, fd, &event) < 0) die("epoll_ctl");
}

/* Wait for events, at most until `due` (a time of now_ns; 0: without end; in the past: not at all). */
static inline int wait_until(int poll, struct epoll_event *events, int max, uint64_t due, uint64_t now) {
    uint64_t left = due > now ? due - now : 0;
    struct timespec timeout = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    int count = epoll_pwait2(poll, events, max, due ? &timeout : NULL, NULL);
    if (count < 0 && errno != EINTR) die("epoll_pwait2");
    return count < 0 ? 0 : count;
}

/* Find a field in a head that ends with an empty line; name without the colon. Returns its value, or NULL. */
static inline const char *field(const char *head, size_t bytes, const char *name) {
    size_t length = strlen(name);
    const char *line = memchr(head, '\n', bytes), *end = head + bytes;
    while (line && line + 1 + length < end) {
        if (!strncasecmp(line + 1, name, length) && line[1 + length] == ':') {
            const char *value = line + 2 + length;
            return value + strspn(value, " \t");
        }
        line = memchr(line + 1, '\n', (size_t)(end - line - 1));
    }
    return NULL;
}

#endif
