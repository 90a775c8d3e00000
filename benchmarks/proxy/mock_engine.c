/* Engine servers that cost next to nothing: one thread, any number of ports.
 *
 *     mock_engine COUNT [REPORT]
 *
 * Prints "listening PORT..." and serves until it is killed. GET answers for /health and /v1/models; every other POST
 * gets a fixed chat completion, or, when its body says "stream": true, the same as server-sent events, each a write of
 * its own. "POST /mock/set?chunks=K&gap_us=G" sets how many events, and how far apart, for all ports.
 *
 * REPORT: a FIFO. For each POST it gets a fixed record (struct Seen) for whoever plays the connector. Records that do
 * not fit are dropped: an engine does not wait for its bookkeeping.
 */
#include "wire.h"

#include <fcntl.h>
#include <signal.h>

#define PORTS_MAX 256
#define CHUNKS_MAX 100000
#define EVENTS_MAX 256
#define EDGE_BYTES 1024 /* how far into both ends of a body "stream" is looked for, before all of it is */

typedef struct Conn {
    int fd, worker; /* worker: index of the port. fd: the listening socket itself when `listener` is set */
    bool listener, streaming, blocked, broken;
    Buffer in;
    const char *out; /* what is left of the write in hand: static memory, never freed */
    size_t out_bytes;
    int next;     /* chunk of the stream in hand */
    uint64_t due; /* when it may be written */
    struct Conn *after, *before; /* in the list of streams that can go on */
} Conn;

struct Seen {
    uint32_t worker, project, body_bytes, streamed;
    char request_id[48];
};

static int poll_fd, report_fd = -1, chunks = 16;
static uint64_t gap_ns;
static Conn streams = {.after = &streams, .before = &streams};
static char *plain, *models, *stream_head, *event, *last;
static size_t plain_bytes, models_bytes, stream_head_bytes, event_bytes, last_bytes;
static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";
static const char NO_LENGTH[] = "HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

static char *with_head(const char *body, size_t *bytes) {
    char *text;
    int size = asprintf(&text,
                        "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
                        "content-length: %zu\r\n\r\n%s",
                        strlen(body), body);
    if (size < 0) die("memory");
    *bytes = (size_t)size;
    return text;
}

/* One piece of a body in chunked encoding. */
static char *chunk(const char *body, const char *trailer, size_t *bytes) {
    char *text;
    int size = asprintf(&text, "%zx\r\n%s\r\n%s", strlen(body), body, trailer);
    if (size < 0) die("memory");
    *bytes = (size_t)size;
    return text;
}

static void make_answers(void) {
    plain = with_head("{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1767225600,"
                      "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
                      "\"The function returns the first index that fits, or None when there is none.\","
                      "\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":"
                      "512,\"total_tokens\":528,\"completion_tokens\":16}}",
                      &plain_bytes);
    models = with_head("{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1767225600,"
                       "\"owned_by\":\"vllm\",\"root\":\"mock\",\"max_model_len\":262144}]}",
                       &models_bytes);
    stream_head = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                  "transfer-encoding: chunked\r\n\r\n";
    stream_head_bytes = strlen(stream_head);
    event = chunk("data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":"
                  "1767225600,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" index\"},"
                  "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                  "", &event_bytes);
    last = chunk("data: [DONE]\n\n", "0\r\n\r\n", &last_bytes);
}

static void enlist(Conn *c) {
    c->after = &streams, c->before = streams.before;
    c->before->after = c->after->before = c;
}

static void delist(Conn *c) {
    if (!c->after) return;
    c->before->after = c->after, c->after->before = c->before;
    c->after = c->before = NULL;
}

/* Write what is in hand. Returns true when all of it is out; else EPOLLOUT goes on with it, or the peer is gone. */
static bool flush(Conn *c) {
    while (c->out_bytes) {
        ssize_t sent = send(c->fd, c->out, c->out_bytes, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) {
                c->broken = true;
            } else if (!c->blocked) {
                c->blocked = true;
                watch(poll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
            }
            return false;
        }
        c->out += sent, c->out_bytes -= (size_t)sent;
    }
    return true;
}

static bool put(Conn *c, const char *bytes, size_t count) {
    c->out = bytes, c->out_bytes = count;
    return flush(c);
}

static bool contains(const char *text, size_t bytes, const char *what) {
    return memmem(text, bytes, what, strlen(what)) != NULL;
}

/* 1: it asks for a stream, 0: it says that it does not, -1: it says nothing. */
static int says_stream(const char *text, size_t bytes) {
    if (contains(text, bytes, "\"stream\":true") || contains(text, bytes, "\"stream\": true")) return 1;
    return contains(text, bytes, "\"stream\":false") || contains(text, bytes, "\"stream\": false") ? 0 : -1;
}

static bool wants_stream(const char *body, size_t bytes) {
    if (bytes <= 2 * EDGE_BYTES) return says_stream(body, bytes) == 1;
    int said = says_stream(body, EDGE_BYTES);
    if (said < 0) said = says_stream(body + bytes - EDGE_BYTES, EDGE_BYTES);
    if (said < 0) said = says_stream(body, bytes);
    return said == 1;
}

static void report(const Conn *c, const char *head, size_t head_bytes, size_t body_bytes, bool streamed) {
    if (report_fd < 0) return;
    struct Seen seen = {(uint32_t)c->worker, UINT32_MAX, (uint32_t)body_bytes, streamed, {0}};
    const char *id = field(head, head_bytes, "x-request-id"), *body = head + head_bytes;
    size_t id_bytes = id ? strcspn(id, "\r\n") : 0;
    if (id_bytes < sizeof seen.request_id) memcpy(seen.request_id, id, id_bytes);
    const char *project = memmem(body, body_bytes < EDGE_BYTES ? body_bytes : EDGE_BYTES, "project ", 8);
    if (project) seen.project = (uint32_t)strtoul(project + 8, NULL, 10);
    if (write(report_fd, &seen, sizeof seen) < 0 && errno != EAGAIN) report_fd = -1;
}

static void set(const char *head, size_t bytes) {
    const char *count = memmem(head, bytes, "chunks=", 7), *gap = memmem(head, bytes, "gap_us=", 7);
    if (count) chunks = atoi(count + 7);
    if (chunks < 1 || chunks > CHUNKS_MAX) chunks = 1;
    if (gap) gap_ns = strtoull(gap + 7, NULL, 10) * 1000u;
}

static void answer(Conn *c, const char *head, size_t head_bytes, size_t body_bytes) {
    if (!strncmp(head, "POST /mock/set", 14)) {
        set(head, head_bytes);
        put(c, OK, sizeof OK - 1);
    } else if (!strncmp(head, "GET /v1/models", 14)) {
        put(c, models, models_bytes);
    } else if (strncmp(head, "POST ", 5) != 0) {
        put(c, OK, sizeof OK - 1);
    } else {
        bool streamed = wants_stream(head + head_bytes, body_bytes);
        report(c, head, head_bytes, body_bytes, streamed);
        if (!streamed) {
            put(c, plain, plain_bytes);
            return;
        }
        c->streaming = true, c->next = 0, c->due = now_ns() + gap_ns;
        if (put(c, stream_head, stream_head_bytes)) enlist(c);
    }
}

/* Answer the requests that are there in full, one at a time: the next waits until a stream has ended. */
static void serve(Conn *c) {
    while (!c->streaming && !c->out_bytes && !c->broken && c->in.have) {
        char *end = memmem(c->in.data, c->in.have, "\r\n\r\n", 4);
        if (!end) {
            c->broken = c->in.have > HEAD_MAX;
            return;
        }
        size_t head = (size_t)(end - c->in.data) + 4;
        const char *length = field(c->in.data, head, "content-length");
        if (!length && !strncmp(c->in.data, "POST", 4)) {
            put(c, NO_LENGTH, sizeof NO_LENGTH - 1);
            c->broken = true;
            return;
        }
        size_t body = length ? strtoull(length, NULL, 10) : 0;
        if (c->in.have < head + body) return;
        answer(c, c->in.data, head, body);
        drop(&c->in, head + body);
    }
}

static void on_readable(Conn *c) {
    for (;;) {
        reserve(&c->in, READ_BYTES);
        size_t room = c->in.cap - c->in.have;
        ssize_t got = recv(c->fd, c->in.data + c->in.have, room, 0);
        if (got > 0) c->in.have += (size_t)got;
        if (got == 0 || (got < 0 && errno != EAGAIN)) c->broken = true;
        if (got < (ssize_t)room) break;
    }
    if (!c->broken) serve(c);
}

static void on_writable(Conn *c) {
    if (!flush(c)) return;
    c->blocked = false;
    watch(poll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    if (!c->streaming) {
        serve(c);
    } else if (c->next > chunks) {
        c->streaming = false;
        serve(c);
    } else {
        enlist(c);
    }
}

/* Write one event of each stream whose time has come; returns when the next is due, 0 for never. */
static uint64_t step_streams(uint64_t now) {
    uint64_t due = 0;
    for (Conn *c = streams.after, *after; c != &streams; c = after) {
        after = c->after;
        if (c->due <= now) {
            bool ends = c->next++ >= chunks;
            c->due = gap_ns ? c->due + gap_ns : now;
            bool out = ends ? put(c, last, last_bytes) : put(c, event, event_bytes);
            if (!out || ends) delist(c);
            if (out && ends) {
                c->streaming = false;
                serve(c);
            }
            if (c->broken) shutdown(c->fd, SHUT_RDWR); /* epoll says so in the next turn: it is closed there */
        }
        if (c->after && (!due || c->due < due)) due = c->due;
    }
    return due;
}

static void take_in(const Conn *listener) {
    int fd;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        Conn *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        c->fd = fd, c->worker = listener->worker;
        no_delay(fd);
        watch(poll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

static void on_event(Conn *c, uint32_t events) {
    if (c->listener) {
        take_in(c);
        return;
    }
    if (events & EPOLLOUT) on_writable(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
    if (!c->broken) return;
    delist(c);
    close(c->fd);
    free(c->in.data);
    free(c);
}

static void listen_on(int worker) {
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    Conn *c = calloc(1, sizeof *c);
    if (!c) die("memory");
    c->listener = true, c->worker = worker;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0 || bind(c->fd, (struct sockaddr *)&address, size) || listen(c->fd, 1024)) die("listen");
    getsockname(c->fd, (struct sockaddr *)&address, &size);
    printf(" %d", ntohs(address.sin_port));
    watch(poll_fd, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0;
    if (count < 1 || count > PORTS_MAX) {
        fprintf(stderr, "usage: mock_engine COUNT [REPORT], COUNT from 1 to %d\n", PORTS_MAX);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    make_answers();
    poll_fd = epoll_create1(0);
    if (argc > 2 && (report_fd = open(argv[2], O_RDWR | O_NONBLOCK)) < 0) die(argv[2]);
    printf("listening");
    for (int worker = 0; worker < count; worker++) listen_on(worker);
    printf("\n");
    fflush(stdout);
    struct epoll_event events[EVENTS_MAX];
    for (;;) {
        uint64_t now = now_ns(), due = step_streams(now);
        int ready = wait_until(poll_fd, events, EVENTS_MAX, due, now);
        for (int i = 0; i < ready; i++) on_event(events[i].data.ptr, events[i].events);
    }
}
