/* Load for a proxy: keep-alive connections, every answer compared with the right one, byte for byte.
 *
 *     load PORT PATH BODIES BODY_BYTES EXPECTED CONNECTIONS SECONDS REQUESTS RATE
 *
 * BODIES: a file of request bodies, BODY_BYTES each, taken in turn; in each, the run of 16 '@' becomes a number that no
 * other request has. EXPECTED: a file with the only right body of an answer. Ends after SECONDS or REQUESTS, whichever
 * is first (0: no such limit), and when the answers that are under way are there. RATE: requests a second, Poisson,
 * each timed from the moment when it was due, even if no connection was free; 0: as fast as the connections go.
 * Prints one JSON object. What goes wrong is counted, and the first of it told on stderr.
 */
#include "wire.h"

#include <math.h>
#include <sys/resource.h>
#include <sys/uio.h>

#define MARK_BYTES 16
#define CONNECTIONS_MAX 4096
#define EVENTS_MAX 512
#define STALL_NS 30000000000u /* no answer for so long: the proxy is stuck, and so would we be */

enum State { IDLE, SENDING, HEAD, BODY };
enum Part { PLAIN, SIZE, DATA, DATA_END, TRAILER }; /* where in a body: PLAIN has a length, the others are chunked */

typedef struct {
    int fd, status;
    enum State state;
    enum Part part;
    bool connected, close_after, different;
    uint64_t due;
    const char *body;
    char mark[MARK_BYTES + 1];
    size_t mark_at, sent, left, seen; /* left: of the body or of the chunk in hand. seen: bytes of the answer's body */
    Buffer in;
} Conn;

static struct {
    uint64_t answers, connect, closed, status, different, reconnects, reads, bytes;
    float *total_us, *first_us;
    size_t cap, firsts, firsts_cap;
} stats;

static int poll_fd;
static uint16_t port;
static char *bodies, *expected, request_head[512];
static size_t *marks, body_bytes, body_count, expected_bytes, head_bytes;
static uint64_t limit, begun, serial, stop_at, last_answer;
static double rate;
static uint64_t next_due;

static char *load_file(const char *name, size_t *bytes) {
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die(name);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    if (!data || fread(data, 1, *bytes, file) != *bytes) die(name);
    fclose(file);
    return data;
}

static void find_marks(void) {
    marks = calloc(body_count, sizeof *marks);
    if (!marks) die("memory");
    for (size_t i = 0; i < body_count; i++) {
        const char *body = bodies + i * body_bytes, *mark = memmem(body, body_bytes, "@@@@@@@@@@@@@@@@", MARK_BYTES);
        if (!mark) die("a body without its mark");
        marks[i] = (size_t)(mark - body);
    }
}

static void note(float **values, size_t index, size_t *cap, uint64_t since, uint64_t now) {
    if (index == *cap) {
        *cap = *cap ? 2 * *cap : 4096;
        *values = realloc(*values, *cap * sizeof **values);
        if (!*values) die("memory");
    }
    (*values)[index] = now > since ? (float)(now - since) / 1e3f : 0;
}

static void tell_once(const Conn *c, const char *what) {
    static bool told;
    if (told) return;
    told = true;
    fprintf(stderr, "first failure: %s, status %d, after %zu bytes of the body, in hand: %.*s\n", what, c->status,
            c->seen, c->in.have < 200 ? (int)c->in.have : 200, c->in.have ? c->in.data : "");
}

static void disconnect(Conn *c) {
    close(c->fd);
    c->fd = -1, c->connected = false, c->in.have = 0, c->state = IDLE;
}

static void connect_to(Conn *c) {
    struct sockaddr_in address = loopback(port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    no_delay(c->fd);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) die("connect");
    watch(poll_fd, EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT | EPOLLET, c);
}

static void fail(Conn *c, uint64_t *counter, const char *what) {
    ++*counter;
    tell_once(c, what);
    disconnect(c);
}

/* Write head, body before the mark, mark, body after it: whatever of them is not out yet. */
static void go_on_sending(Conn *c) {
    const struct iovec all[] = {{request_head, head_bytes},
                                {(char *)c->body, c->mark_at},
                                {c->mark, MARK_BYTES},
                                {(char *)c->body + c->mark_at + MARK_BYTES, body_bytes - c->mark_at - MARK_BYTES}};
    while (c->sent < head_bytes + body_bytes) {
        struct iovec rest[4];
        int count = 0;
        size_t skip = c->sent;
        for (int i = 0; i < 4; i++) {
            size_t cut = skip < all[i].iov_len ? skip : all[i].iov_len;
            skip -= cut;
            if (cut < all[i].iov_len) rest[count++] = (struct iovec){(char *)all[i].iov_base + cut, all[i].iov_len - cut};
        }
        struct msghdr message = {.msg_iov = rest, .msg_iovlen = (size_t)count};
        ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) {
            fail(c, &stats.closed, "closed while the request was written");
            return;
        }
        c->sent += (size_t)sent;
    }
    c->state = HEAD;
}

static bool more_wanted(uint64_t now) {
    return (!limit || begun < limit) && (!stop_at || now < stop_at);
}

static void begin(Conn *c, uint64_t due) {
    if (c->fd < 0) connect_to(c);
    size_t index = begun++ % body_count;
    c->body = bodies + index * body_bytes, c->mark_at = marks[index];
    snprintf(c->mark, sizeof c->mark, "%016llx", (unsigned long long)(++serial * 0x9E3779B97F4A7C15u));
    c->due = due, c->sent = 0, c->seen = 0, c->left = 0, c->status = 0, c->different = false, c->close_after = false;
    c->state = SENDING;
    if (c->connected) go_on_sending(c);
}

static void finish(Conn *c, uint64_t now) {
    if (c->status != 200) {
        stats.status++;
        tell_once(c, "status");
    } else if (c->different || c->seen != expected_bytes) {
        stats.different++;
        tell_once(c, "another answer than expected");
    }
    note(&stats.total_us, stats.answers++, &stats.cap, c->due, now);
    last_answer = now;
    c->state = IDLE;
    if (c->close_after) {
        stats.reconnects++;
        disconnect(c);
    }
}

/* Take one head; returns its bytes, 0 while it is incomplete. */
static size_t take_head(Conn *c, uint64_t now) {
    char *end = memmem(c->in.data, c->in.have, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t bytes = (size_t)(end - c->in.data) + 4;
    c->status = bytes > 12 ? atoi(c->in.data + 9) : 0;
    const char *length = field(c->in.data, bytes, "content-length"), *how = field(c->in.data, bytes, "connection");
    bool chunked = field(c->in.data, bytes, "transfer-encoding") != NULL;
    c->close_after = how && !strncasecmp(how, "close", 5);
    c->part = chunked ? SIZE : PLAIN;
    c->left = length && !chunked ? strtoull(length, NULL, 10) : 0;
    c->state = BODY;
    note(&stats.first_us, stats.firsts++, &stats.firsts_cap, c->due, now);
    if (!chunked && !c->left) finish(c, now);
    return bytes;
}

static size_t take_data(Conn *c, const char *data, size_t have) {
    size_t count = have < c->left ? have : c->left;
    if (c->seen + count > expected_bytes || memcmp(expected + c->seen, data, count) != 0) c->different = true;
    c->seen += count, c->left -= count, stats.bytes += count;
    return count;
}

/* Take one piece of a body; returns its bytes, 0 while it is incomplete. */
static size_t take_body(Conn *c, const char *data, size_t have, uint64_t now) {
    if (c->part == PLAIN || c->part == DATA) {
        size_t count = take_data(c, data, have);
        if (!c->left && c->part == PLAIN) finish(c, now);
        if (!c->left && c->part == DATA) c->part = DATA_END;
        return count;
    }
    const char *end = memchr(data, '\n', have);
    if (!end) return 0;
    size_t bytes = (size_t)(end - data) + 1;
    if (c->part == SIZE) {
        c->left = strtoull(data, NULL, 16);
        c->part = c->left ? DATA : TRAILER;
    } else if (c->part == DATA_END) {
        c->part = SIZE;
    } else if (bytes <= 2) {
        finish(c, now);
    }
    return bytes;
}

static void on_readable(Conn *c, uint64_t now) {
    for (;;) {
        reserve(&c->in, 64 << 10);
        ssize_t got = recv(c->fd, c->in.data + c->in.have, c->in.cap - c->in.have, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            if (c->state == IDLE) disconnect(c); /* an idle connection may be closed: that is no failure */
            else fail(c, c->connected ? &stats.closed : &stats.connect, "closed before the answer was complete");
            return;
        }
        stats.reads++;
        c->in.have += (size_t)got;
        size_t used = 0, step = 1;
        while (step && used < c->in.have && (c->state == HEAD || c->state == BODY)) {
            step = c->state == HEAD ? take_head(c, now) : take_body(c, c->in.data + used, c->in.have - used, now);
            used += step;
        }
        if (c->fd < 0) return;
        drop(&c->in, used);
        if (c->in.have && (c->state == IDLE || c->state == SENDING || c->in.have > HEAD_MAX)) {
            fail(c, &stats.different, "bytes that belong to no answer");
            return;
        }
    }
}

static void on_event(Conn *c, uint32_t events, uint64_t now) {
    if (c->fd < 0) return;
    if (events & EPOLLOUT && !(events & (EPOLLERR | EPOLLHUP))) c->connected = true;
    if (events & EPOLLOUT && c->state == SENDING && c->connected) go_on_sending(c);
    if (c->fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c, now);
}

/* Give work to the idle connections; returns when the next request is due, 0 for "when an answer comes". */
static uint64_t hand_out(Conn *conns, int count, uint64_t now) {
    for (int i = 0; i < count && more_wanted(now); i++) {
        if (conns[i].state != IDLE) continue;
        if (rate > 0 && next_due > now) break;
        begin(&conns[i], rate > 0 ? next_due : now);
        if (rate > 0) next_due += (uint64_t)(-log(1.0 - drand48()) * 1e9 / rate);
    }
    return rate > 0 && more_wanted(now) && next_due > now ? next_due : 0;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double at(const float *sorted, size_t count, double part) {
    return count ? sorted[(size_t)(part * (double)(count - 1))] : 0;
}

static void print_results(double seconds) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    if (stats.answers) qsort(stats.total_us, stats.answers, sizeof(float), by_value);
    if (stats.firsts) qsort(stats.first_us, stats.firsts, sizeof(float), by_value);
    printf("{\"answers\":%llu,\"seconds\":%.6f,\"connect\":%llu,\"closed\":%llu,\"status\":%llu,\"different\":%llu,"
           "\"reconnects\":%llu,\"reads\":%llu,\"bytes\":%llu,\"cpu_s\":%.3f,\"p50_us\":%.1f,\"p90_us\":%.1f,"
           "\"p99_us\":%.1f,\"first_p50_us\":%.1f,\"first_p99_us\":%.1f}\n",
           (unsigned long long)stats.answers, seconds, (unsigned long long)stats.connect,
           (unsigned long long)stats.closed, (unsigned long long)stats.status, (unsigned long long)stats.different,
           (unsigned long long)stats.reconnects, (unsigned long long)stats.reads, (unsigned long long)stats.bytes, cpu,
           at(stats.total_us, stats.answers, 0.5), at(stats.total_us, stats.answers, 0.9),
           at(stats.total_us, stats.answers, 0.99), at(stats.first_us, stats.firsts, 0.5),
           at(stats.first_us, stats.firsts, 0.99));
}

static int busy(const Conn *conns, int count) {
    int found = 0;
    for (int i = 0; i < count; i++) found += conns[i].state != IDLE;
    return found;
}

static void run(Conn *conns, int count) {
    struct epoll_event events[EVENTS_MAX];
    uint64_t now = last_answer = now_ns();
    for (;;) {
        uint64_t due = hand_out(conns, count, now);
        if (!due && !busy(conns, count) && !more_wanted(now)) return;
        uint64_t wake = due ? due : now + 100000000u;
        int ready = wait_until(poll_fd, events, EVENTS_MAX, wake, now);
        now = now_ns();
        for (int i = 0; i < ready; i++) on_event(events[i].data.ptr, events[i].events, now);
        if (now - last_answer > STALL_NS) {
            fprintf(stderr, "no answer for %llu s, %d requests under way\n",
                    (unsigned long long)(STALL_NS / 1000000000u), busy(conns, count));
            stats.closed += (uint64_t)busy(conns, count);
            return;
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 10) {
        fprintf(stderr, "usage: load PORT PATH BODIES BODY_BYTES EXPECTED CONNECTIONS SECONDS REQUESTS RATE\n");
        return 2;
    }
    size_t bytes;
    port = (uint16_t)atoi(argv[1]);
    bodies = load_file(argv[3], &bytes);
    body_bytes = strtoull(argv[4], NULL, 10), body_count = body_bytes ? bytes / body_bytes : 0;
    expected = load_file(argv[5], &expected_bytes);
    int count = atoi(argv[6]);
    double seconds = atof(argv[7]);
    limit = strtoull(argv[8], NULL, 10), rate = atof(argv[9]);
    if (!body_count || count < 1 || count > CONNECTIONS_MAX || (seconds <= 0 && !limit)) die("arguments");
    find_marks();
    head_bytes = (size_t)snprintf(request_head, sizeof request_head,
                                  "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load\r\nAccept: */*\r\n"
                                  "Authorization: Bearer none\r\nContent-Type: application/json\r\n"
                                  "Content-Length: %zu\r\n\r\n",
                                  argv[2], port, body_bytes);
    poll_fd = epoll_create1(0);
    Conn *conns = calloc((size_t)count, sizeof *conns);
    if (!conns || poll_fd < 0) die("memory");
    for (int i = 0; i < count; i++) conns[i].fd = -1;
    uint64_t start = now_ns();
    serial = start; /* so that the next run's numbers are others */
    next_due = start, stop_at = seconds > 0 ? start + (uint64_t)(seconds * 1e9) : 0;
    run(conns, count);
    print_results((double)(now_ns() - start) / 1e9);
    return 0;
}
