/* The receiver of the benchmark: takes requests, notes when each arrived, and answers 200, at once or after a delay.
 *
 * In C, so that it is not what is measured: about 10 microseconds of CPU a request, mostly the kernel's. One thread, epoll.
 *
 *     receiver PORT CAPACITY          listens on 127.0.0.1; CAPACITY is the highest event number, and of arrivals
 *
 *     POST /e/NUMBER                  an event; any method will do
 *     POST /.reset?delay_ms=N         forget all arrivals; answer later ones after N milliseconds
 *     GET  /.count                    "unique total open-connections most-connections cpu-microseconds" of it all since the reset
 *     GET  /.arrivals                 pairs of little-endian 64-bit numbers in order of arrival: event, microseconds since 1970
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 65536, BUFFER = 16384 };

struct connection {
    uint32_t generation; /* tells a descriptor from the one that had its number before */
    uint32_t filled;
    uint64_t skip; /* bytes of a body that are still to come */
    char *buffer;
};

struct arrival { uint64_t event, at_us; };
struct answer { int fd; uint32_t generation; uint64_t at_us; int closing; };

static struct connection connections[CONNECTIONS];
static struct arrival *arrivals;
static struct answer *waiting; /* a ring: all answers wait for the same time, so they end in the order they came */
static uint8_t *seen;
static uint64_t capacity, unique_events, total, open_now, open_most, delay_us, ring_first, ring_last, ring_size, cpu_at_reset;

static uint64_t microseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void hang_up(int fd)
{
    connections[fd].generation++;
    connections[fd].filled = connections[fd].skip = 0;
    open_now--;
    close(fd);
}

/* Write all of it, waiting where the socket is full: only the report of the arrivals is ever longer than a socket's buffer. */
static int put(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t written = send(fd, data, length, MSG_NOSIGNAL);
        if (written < 0 && errno == EAGAIN) { usleep(200); continue; }
        if (written <= 0) return -1;
        data += written;
        length -= written;
    }
    return 0;
}

static void reply(int fd, const char *body, size_t length, int closing)
{
    char head[160];
    int size = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n%s\r\n", length, closing ? "Connection: close\r\n" : "");
    int failed;
    if (length < 64) { /* one packet */
        memcpy(head + size, body, length);
        failed = put(fd, head, size + length);
    } else {
        failed = put(fd, head, size) || put(fd, body, length);
    }
    if (failed || closing) hang_up(fd);
}

static void reset(const char *query)
{
    const char *delay = strstr(query, "delay_ms=");
    delay_us = delay ? strtoull(delay + 9, NULL, 10) * 1000 : 0;
    memset(seen, 0, capacity / 8 + 1);
    unique_events = total = ring_first = ring_last = 0;
    open_most = open_now;
    cpu_at_reset = microseconds(CLOCK_PROCESS_CPUTIME_ID);
}

static void note(uint64_t event)
{
    if (total < capacity * 2) arrivals[total] = (struct arrival){event, microseconds(CLOCK_REALTIME)};
    total++;
    if (event <= capacity && !(seen[event / 8] & (1 << event % 8))) {
        seen[event / 8] |= 1 << event % 8;
        unique_events++;
    }
}

static void answer_later(int fd, int closing)
{
    struct answer *slot = &waiting[ring_last++ % ring_size];
    *slot = (struct answer){fd, connections[fd].generation, microseconds(CLOCK_MONOTONIC) + delay_us, closing};
}

static void answer_waiting(void)
{
    uint64_t now = microseconds(CLOCK_MONOTONIC);
    while (ring_first < ring_last && waiting[ring_first % ring_size].at_us <= now) {
        struct answer *due = &waiting[ring_first++ % ring_size];
        if (connections[due->fd].generation == due->generation) reply(due->fd, "ok", 2, due->closing);
    }
}

static void handle(int fd, char *target, int closing)
{
    char text[128];
    if (!strncmp(target, "/e/", 3)) {
        note(strtoull(target + 3, NULL, 10));
        if (delay_us) answer_later(fd, closing);
        else reply(fd, "ok", 2, closing);
    } else if (!strncmp(target, "/.reset", 7)) {
        reset(target);
        reply(fd, "ok", 2, closing);
    } else if (!strncmp(target, "/.count", 7)) {
        uint64_t cpu = microseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_at_reset;
        int size = snprintf(text, sizeof text, "%lu %lu %lu %lu %lu", unique_events, total, open_now, open_most, cpu);
        reply(fd, text, size, closing);
    } else if (!strncmp(target, "/.arrivals", 10)) {
        reply(fd, (char *)arrivals, (total < capacity * 2 ? total : capacity * 2) * sizeof *arrivals, 1);
    } else {
        reply(fd, "what?", 5, 1);
    }
}

/* Take whole requests out of what has come. Returns how many bytes were used up. */
static size_t take_request(int fd, struct connection *c)
{
    char *end = memmem(c->buffer, c->filled, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    size_t head = end + 4 - c->buffer;
    const char *length = strcasestr(c->buffer, "\ncontent-length:");
    size_t body = length ? strtoull(length + 16, NULL, 10) : 0;
    int closing = strcasestr(c->buffer, "\nconnection: close") || strstr(c->buffer, " HTTP/1.0");
    char *target = strchr(c->buffer, ' ');
    size_t here = c->filled - head < body ? c->filled - head : body;
    c->skip = body - here;
    uint32_t generation = c->generation;
    /* A body that is still to come is swallowed after the answer: clients read answers when they are done writing. */
    handle(fd, target ? target + 1 : c->buffer, closing);
    return connections[fd].generation == generation ? head + here : 0;
}

static void receive(int fd)
{
    struct connection *c = &connections[fd];
    ssize_t size = recv(fd, c->buffer + c->filled, BUFFER - c->filled, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) { hang_up(fd); return; }
    c->filled += size;
    uint32_t generation = c->generation;
    while (c->filled && c->generation == generation) {
        size_t used = c->skip < c->filled ? c->skip : c->filled;
        c->skip -= used;
        if (!used) used = take_request(fd, c);
        if (c->generation != generation) return;
        if (!used) break;
        c->filled -= used;
        memmove(c->buffer, c->buffer + used, c->filled);
    }
    if (c->filled == BUFFER) hang_up(fd);
}

static void welcome(int listener, int poll)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= CONNECTIONS) { close(fd); continue; }
        if (!connections[fd].buffer) connections[fd].buffer = malloc(BUFFER);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event watch = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &watch);
        if (++open_now > open_most) open_most = open_now;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) return fprintf(stderr, "usage: receiver PORT CAPACITY\n"), 2;
    capacity = strtoull(argv[2], NULL, 10);
    ring_size = CONNECTIONS;
    arrivals = calloc(capacity * 2, sizeof *arrivals);
    waiting = calloc(ring_size, sizeof *waiting);
    seen = calloc(capacity / 8 + 1, 1);
    struct rlimit files = {CONNECTIONS, CONNECTIONS};
    if (setrlimit(RLIMIT_NOFILE, &files)) { getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files); }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("receiver"), 1;
    int poll = epoll_create1(0);
    struct epoll_event watch = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &watch);
    for (;;) {
        int patience = ring_first < ring_last ? 1 : -1;
        int count = epoll_wait(poll, ready, 256, patience);
        for (int i = 0; i < count; i++)
            if (ready[i].data.fd == listener) welcome(listener, poll);
            else receive(ready[i].data.fd);
        answer_waiting();
    }
}
