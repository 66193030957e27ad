/* A program without a resolver, linked statically: the kind of workload no preload library and no
 * environment variable reaches. Dials an address literal, sends one GET, or a POST where there is a
 * body, prints what getpeername says and then the answer. Usage: static_client ADDRESS PORT HOST PATH [BODY] */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: static_client ADDRESS PORT HOST PATH [BODY]\n");
        return 2;
    }
    struct sockaddr_storage to = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&to;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&to;
    socklen_t size;
    unsigned short port = htons((unsigned short)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = port;
        size = sizeof *v4;
    } else if (inet_pton(AF_INET6, argv[1], &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = port;
        size = sizeof *v6;
    } else {
        fprintf(stderr, "not an address: %s\n", argv[1]);
        return 2;
    }
    int fd = socket(to.ss_family, SOCK_STREAM, 0);
    if (fd < 0)
        fail("socket");
    if (connect(fd, (struct sockaddr *)&to, size) < 0)
        fail("connect");

    struct sockaddr_storage peer = {0};
    socklen_t peer_size = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &peer_size) < 0)
        fail("getpeername");
    char text[INET6_ADDRSTRLEN];
    const void *address = peer.ss_family == AF_INET ? (void *)&((struct sockaddr_in *)&peer)->sin_addr
                                                    : (void *)&((struct sockaddr_in6 *)&peer)->sin6_addr;
    unsigned short peer_port = peer.ss_family == AF_INET ? ((struct sockaddr_in *)&peer)->sin_port
                                                         : ((struct sockaddr_in6 *)&peer)->sin6_port;
    printf("peer %s %u\n", inet_ntop(peer.ss_family, address, text, sizeof text), ntohs(peer_port));

    char request[2048];
    const char *body = argc == 6 ? argv[5] : "";
    int length = snprintf(request, sizeof request,
                          "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                          argc == 6 ? "POST" : "GET", argv[4], argv[3], strlen(body), body);
    if (length < 0 || (size_t)length >= sizeof request || write(fd, request, length) != length)
        fail("write");
    char buffer[4096];
    ssize_t count;
    while ((count = read(fd, buffer, sizeof buffer)) > 0)
        fwrite(buffer, 1, count, stdout);
    if (count < 0)
        fail("read");
    return 0;
}
